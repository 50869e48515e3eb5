"""Test the noise tape: every draw depends only on its place."""

import numpy as np
from scipy import stats

from guided_diffusion_core.noise import SAMPLE_INITIAL, TRAIN_NOISE, TRAIN_ORDER, NoiseTape

SHAPE = (1, 8, 8)


def test_a_draw_does_not_depend_on_the_draws_before_it():
    first = NoiseTape(3)
    second = NoiseTape(3)
    second.normal(TRAIN_NOISE, (100,), step=9)
    second.permutation(TRAIN_ORDER, 50)
    assert np.array_equal(
        first.normal(TRAIN_NOISE, SHAPE, step=1, case=2), second.normal(TRAIN_NOISE, SHAPE, step=1, case=2)
    )


def test_a_batch_is_its_cases_draws_in_any_company_and_order():
    tape = NoiseTape(0)
    batch = tape.normal_batch(SAMPLE_INITIAL, SHAPE, step=0, cases=["a", "b", "a"], members=[0, 0, 1])
    for row, (case, member) in zip(batch, (("a", 0), ("b", 0), ("a", 1))):
        assert np.array_equal(row, tape.normal(SAMPLE_INITIAL, SHAPE, case=case, member=member))
    masks = tape.keep_mask("dropout/x", SHAPE, 0.3, step=4, cases=[5, 6])
    assert np.array_equal(masks[1:], tape.keep_mask("dropout/x", SHAPE, 0.3, step=4, cases=[6]))


def test_each_part_of_a_place_gives_other_numbers():
    places = [{"seed": 0, "site": "a", "step": 0, "case": 0, "member": 0}]
    places += [
        {**places[0], **change}
        for change in ({"seed": 1}, {"site": "b"}, {"step": 1}, {"case": 1}, {"member": 1}, {"case": "BraTS/1"})
    ]
    draws = [NoiseTape(place.pop("seed")).normal(place.pop("site"), SHAPE, **place) for place in places]
    for index, draw in enumerate(draws):
        assert not any(np.array_equal(draw, other) for other in draws[:index])


def test_normals_are_standard_normal():
    values = NoiseTape(1).normal(TRAIN_NOISE, (20_000,))
    assert values.dtype == np.float32
    assert stats.kstest(values, "norm").pvalue > 1e-3
    across = np.array([float(NoiseTape(1).normal(TRAIN_NOISE, (), step=step)) for step in range(4_000)])
    assert stats.kstest(across, "norm").pvalue > 1e-3


def test_uniforms_across_steps_are_uniform():
    values = [float(NoiseTape(1).uniform("u", step=step)) for step in range(4_000)]
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_keep_masks_have_mean_one_and_two_values():
    masks = NoiseTape(2).keep_mask("dropout/x", (10_000,), 0.25, step=0, cases=[0, 1])
    assert set(np.unique(masks)) == {np.float32(0), np.float32(1 / 0.75)}
    kept = (masks > 0).sum()
    assert stats.binomtest(int(kept), masks.size, 0.75).pvalue > 1e-3


def test_a_permutation_holds_every_number_once():
    orders = [NoiseTape(0).permutation(TRAIN_ORDER, 30, step=epoch) for epoch in range(2)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert not np.array_equal(*orders)


def test_values_drawn_in_pieces_are_those_drawn_at_once():
    shape = (3, 2**15 + 5)
    tape = NoiseTape(1)
    at_once = tape._generator(TRAIN_NOISE, 2, "a", 1).standard_normal(shape).astype(np.float32)
    assert np.array_equal(tape.normal(TRAIN_NOISE, shape, step=2, case="a", member=1), at_once)
    centred = ((2 * tape.uniform("w", shape) - 1) * 0.3).astype(np.float32)
    assert np.array_equal(tape.symmetric_uniform("w", shape, 0.3), centred)

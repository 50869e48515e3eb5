"""Test the rule: it has no scale, and it notices one wrong element, NaN, and noise where the truth is zero."""

import numpy as np
import pytest

from parity.rule import RULE, allowance, cosine, distance, judge, judge_exact, judge_mask, norms, ulp_quantiles

EPS32 = np.finfo(np.float32).eps
EPS64 = np.finfo(np.float64).eps
SIZE = 4000


def tensors(scale=1.0, own=1e-6, error=1e-6):
    """Return (candidate, reference, truth, references) with relative errors of a given size, in float32 and float64."""
    generator = np.random.default_rng(0)
    truth = generator.standard_normal(SIZE) * scale
    noise = [generator.standard_normal(SIZE) for _ in range(3)]
    reference = (truth + own * scale * noise[0]).astype(np.float32)
    moved = (truth + own * scale * noise[1]).astype(np.float32)
    candidate = (truth + error * scale * noise[2]).astype(np.float32)
    return candidate, reference, truth, {"float32": [reference, moved], "float64": []}


def own_errors(truth, references):
    """Return the largest distance of the runs of each precision from the truth."""
    return {
        precision: np.max([distance(truth, run) for run in runs] or np.zeros((1, 2)), axis=0)
        for precision, runs in references.items()
    }


def ratio(candidate, reference, truth, references, precision="float32", **keywords):
    return judge(candidate, reference, truth, own_errors(truth, references), precision, **keywords).ratio


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e20])
def test_verdict_does_not_depend_on_the_scale(scale):
    assert ratio(*tensors(scale)) == pytest.approx(ratio(*tensors(1.0)), rel=0.02)


@pytest.mark.parametrize("error, passes", [(1e-6, True), (1e-5, True), (1e-4, False), (1e-2, False)])
def test_error_is_measured_by_the_references_own(error, passes):
    assert (ratio(*tensors(error=error)) <= 1) is passes
    assert ratio(*tensors(own=error, error=error)) < 1, "the same error is allowed where the reference has it too"


def test_ratio_is_the_share_of_what_the_rule_allows():
    truth = np.array([1.0, -2.0, 3.0])
    reference = (truth + [0, 0, 3e-6]).astype(np.float32)
    error = 1e-4
    candidate = (truth + [0, error, 0]).astype(np.float32)
    own = abs(float(reference[2]) - 3.0)
    expected = abs(float(candidate[1]) + 2.0) / (RULE.multiple * own + RULE.last_places * EPS32 * 3.0)
    assert ratio(candidate, reference, truth, {"float32": [reference], "float64": []}) == pytest.approx(expected)


def test_one_wrong_element_of_many_diverges():
    candidate, *rest = tensors()
    assert ratio(candidate, *rest) <= 1
    candidate[17] += 1e-3
    assert ratio(candidate, *rest) > 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_must_be_at_the_same_places(value):
    candidate, reference, truth, references = tensors()
    candidate[3] = value
    found = judge(candidate, reference, truth, own_errors(truth, references), "float32")
    assert found.ratio == np.inf and found.problem
    for array in (reference, truth, *references["float32"]):
        array[3] = value
    assert ratio(candidate, reference, truth, references) <= 1, "at the same place it agrees, the rest is compared"
    candidate[4] += 1
    assert ratio(candidate, reference, truth, references) > 1


def test_infinity_of_the_other_sign_diverges():
    candidate, reference, truth, references = tensors()
    for array in (reference, truth, *references["float32"]):
        array[3] = np.inf
    candidate[3] = -np.inf
    assert ratio(candidate, reference, truth, references) == np.inf


def test_float64_is_judged_by_its_own_eps():
    candidate, reference, truth, references = tensors()
    near = truth * (1 + 100 * EPS64)
    assert ratio(near, truth, truth, references, "float64") <= 1
    assert ratio(truth * (1 + 1e-9), truth, truth, references, "float64") > 1
    assert ratio(np.float64(candidate), truth, truth, references, "float64") > 1


def test_perturbed_float64_runs_count():
    _, _, truth, references = tensors()
    candidate = truth * (1 + 1e-9)
    references["float64"] = [truth * (1 - 1e-9)]
    assert ratio(candidate, truth, truth, references, "float64") <= 1


def test_what_is_zero_in_truth_is_judged_on_the_scale_of_its_kind():
    generator = np.random.default_rng(1)
    truth = generator.standard_normal(SIZE) * 1e-17
    reference = (generator.standard_normal(SIZE) * 1e-9).astype(np.float32)
    candidate = (generator.standard_normal(SIZE) * 1e-7).astype(np.float32)
    given = candidate, reference, truth, {"float32": [reference], "float64": []}
    there = candidate + np.float32(1e-3), reference + np.float32(1e-3)
    assert ratio(*given) > 1
    assert ratio(*given, rung_scale=1.0) <= 1
    assert ratio(candidate * 1000, *given[1:], rung_scale=1.0) > 1
    assert ratio(*there, truth + 1e-3, {"float32": [there[1]], "float64": []}, rung_scale=1.0) > 1, "small, but there"


def test_zero_error_where_nothing_is_allowed():
    zeros = np.zeros(4, np.float32)
    given = zeros, np.zeros(4), {"float32": [zeros], "float64": []}
    assert ratio(zeros, *given) == 0
    assert ratio(zeros + np.float32(1e-30), *given) == np.inf


def test_norms_do_not_underflow():
    np.testing.assert_allclose(norms(np.full(4, 1e-200)), 1e-200)
    np.testing.assert_array_equal(norms(np.zeros(3)), 0)
    np.testing.assert_array_equal(norms(np.zeros(0)), 0)


def test_ulps_are_numpys():
    values = np.array([1.0, 2.0, -3.0, 0.0], np.float32)
    moved = np.nextafter(np.nextafter(values, np.float32(9)), np.float32(9))
    median, most, largest = ulp_quantiles(np.float64(moved[:3]), np.float64(values[:3]), "float32")
    assert (median, most, largest) == (2.0, 2.0, 2.0)


def test_cosine():
    assert cosine(np.array([1.0, 0.0]), np.array([0.0, 2.0])) == 0
    assert cosine(np.array([1e-200, 0.0]), np.array([2e200, 0.0])) == pytest.approx(1)
    assert cosine(np.zeros(2), np.zeros(2)) == 1 and cosine(np.zeros(2), np.ones(2)) == 0


def test_exact():
    values = np.array([1.0, np.nan])
    assert judge_exact(values, values.copy()).ratio == 0
    assert judge_exact(values, np.nextafter(values, 2)).ratio == np.inf


def test_masks_differ_only_where_rounding_may_decide():
    probability = np.array([0.1, 0.5000001, 0.9])
    reference = {"float32": [probability.astype(np.float32)], "float64": []}
    allowed, _ = allowance(probability, own_errors(probability, reference), "float32")
    mask = probability >= 0.5
    near = mask.copy()
    far = mask.copy()
    near[1] = False
    far[0] = True
    assert judge_mask(mask, mask, probability, allowed[1], 0.5).ratio == 0
    assert 0 < judge_mask(near, mask, probability, allowed[1], 0.5).ratio <= 1
    assert judge_mask(far, mask, probability, allowed[1], 0.5).ratio > 1

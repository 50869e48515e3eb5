"""Test that the mask of a case depends only on its image, the seed and the network, in either backend."""

import numpy as np
import pytest
from support.backends import BACKENDS, Backend
from support.small import RandomDataset, small_config

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import resolve
from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.data.formats.volumes import read_geometry
from guided_diffusion_core.data.phantoms import write_brats_phantom
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.results.outputs import MASK, PROBABILITY, UNCERTAINTY, find_output, read_output
from guided_diffusion_core.sampling import run
from guided_diffusion_core.sampling.run import SamplingRun, check_dataset, check_ensemble, sampling_config

ROUNDING = 1e-5  # other batch sizes add up in another order; measured: float32 is within 3.2e-6 of float64
TWO_FRAMEWORKS = 2e-5  # measured 2e-6


class Reversed(RandomDataset):
    """A dataset with its cases in the opposite order."""

    def cases(self):
        return list(reversed(super().cases()))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a checkpoint after a few steps of training, whose masks are neither empty nor full."""
    folder = tmp_path_factory.mktemp("run")
    config = small_config(preset="fast", lr=3e-3, max_steps=6, sample_steps=3, num_ensemble=2)
    loop = Backend(BACKENDS[0]).module("train_util").create_train_loop(config, RandomDataset())
    for _ in loop.run_loop(6):
        pass
    return checkpoints.save(folder, 6, config, loop.networks()) / "model.safetensors"


def sampler_of(backend, path, **settings):
    model, diffusion, config = backend.module("script_util").load_model_and_diffusion(path)
    config = config.replace(**settings)
    return backend.module("sample_util").EnsembleSampler(model, diffusion, config.sampling, NoiseTape(config.seed))


def sampled(sampler, dataset, out_dir, batch_size):
    """Return a dict: name of a case -> (mask, probability), read from the files."""
    SamplingRun(dataset, out_dir, batch_size, 0.5, {}).run(sampler)
    return {
        case.name: tuple(read_output(find_output(out_dir, case.name, kind)) for kind in (MASK, PROBABILITY))
        for case in dataset.cases()
    }


def test_masks_depend_on_neither_batch_size_nor_order(backend, weights, tmp_path):
    sampler = sampler_of(backend, weights)
    first = sampled(sampler, RandomDataset(), tmp_path / "one", 1)
    second = sampled(sampler, Reversed(), tmp_path / "four", 4)
    assert len(first) == 6
    for name, (mask, probability) in first.items():
        assert 0 < mask.mean() < 1
        np.testing.assert_allclose(second[name][1], probability, atol=ROUNDING)
        differing = second[name][0] != mask
        assert (np.abs(probability[differing] - 0.5) <= ROUNDING).all()


def test_parts_and_neighbours_do_not_change_a_bit(backend, weights, tmp_path):
    """Compare 3 parts of 2 cases with all cases at once, both in batches of 4: all batches have one size."""
    sampler = sampler_of(backend, weights, num_ensemble=1)
    whole = sampled(sampler, RandomDataset(), tmp_path / "whole", 4)
    for part_id in range(3):
        SamplingRun(RandomDataset(), tmp_path / "parts", 4, 0.5, {}, part_id=part_id, num_parts=3).run(sampler)
    for name, found in whole.items():
        for kind, values in zip((MASK, PROBABILITY), found):
            np.testing.assert_array_equal(read_output(find_output(tmp_path / "parts", name, kind)), values)


@pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")
def test_both_backends_sample_the_same_masks_from_one_checkpoint(weights, tmp_path):
    found = [
        sampled(sampler_of(Backend(name), weights), RandomDataset(), tmp_path / name, 2)
        for name in ("pytorch", "jittor")
    ]
    for name, (mask, probability) in found[0].items():
        assert (found[1][name][0] == mask).mean() >= 0.999
        np.testing.assert_allclose(found[1][name][1], probability, atol=TWO_FRAMEWORKS)


def test_members_differ_and_their_spread_is_the_uncertainty(backend, weights, tmp_path):
    dataset = RandomDataset(length=1)
    sampler = sampler_of(backend, weights)
    members = np.clip(sampler(dataset.images, ["case0"]), 0, 1)  # (2, 1, 1, 32, 32)
    assert members.shape == (2, 1, 1, 32, 32) and np.abs(members[0] - members[1]).max() > 0
    sampled(sampler, dataset, tmp_path, 1)
    spread = read_output(find_output(tmp_path, "case0", UNCERTAINTY))
    np.testing.assert_allclose(spread, members.std(axis=0)[0, 0], atol=ROUNDING)


@pytest.mark.parametrize(
    "settings",
    [
        {"sample_steps": 1},
        {"sample_steps": 0, "eta": 1.0},
        {"sampler": "ancestral", "sample_steps": 4},
        {"sampler": "ancestral", "sample_steps": 0},
        {"sampler": "dpm-solver++", "sample_steps": 1},
        {"sampler": "dpm-solver++", "sample_steps": 7, "dynamic_thresholding": True},
    ],
)
def test_any_number_of_steps_of_either_sampler(backend, tmp_path, settings):
    config = small_config(preset="fast", diffusion_steps=30, num_ensemble=1, **settings)
    loop = backend.module("train_util").create_train_loop(config, RandomDataset())
    path = checkpoints.save(tmp_path, 0, config, loop.networks()) / "model.safetensors"
    members = sampler_of(backend, path)(RandomDataset().images[:2], ["a", "b"])
    assert members.shape == (1, 2, 1, 32, 32) and np.isfinite(members).all()


def test_another_seed_gives_another_sample(backend, weights):
    images = RandomDataset().images[:1]
    same = sampler_of(backend, weights)
    other = sampler_of(backend, weights, seed=99)
    assert np.abs(same(images, ["a"]) - other(images, ["a"])).max() > 0
    np.testing.assert_array_equal(same(images, ["a"]), same(images, ["a"]))


def test_volumes_without_labels_get_masks_on_their_own_grid(tmp_path):
    """Require empty masks in the slices that were not asked for."""
    folder = write_brats_phantom(tmp_path / "brats", "BraTS2021_00001", (40, 44, 6), seed=2)
    for labels in (tmp_path / "brats").rglob("*_seg.nii.gz"):
        labels.unlink()
    data = resolve({"data_name": "BRATS", "data_dir": str(tmp_path / "brats"), "slices": "odd"}).data
    dataset = open_dataset(data, 32, "Test", need_masks=False)

    def everything(images, keys):
        assert keys == [f"BraTS2021_00001/{z}" for z in (1, 3, 5)] and images.shape == (3, 4, 32, 32)
        return np.ones((2, 3, 1, 32, 32), np.float32)

    SamplingRun(dataset, tmp_path / "masks", 8, 0.5, {"backend": "none"}).run(everything)
    path = find_output(tmp_path / "masks", "BraTS2021_00001", MASK)
    source = next(path for path in (tmp_path / "brats").rglob("*_t1.nii.gz"))
    assert read_geometry(path).agrees_with(read_geometry(source)), folder
    mask = read_output(path)
    assert mask.shape == (40, 44, 6)
    assert [bool(mask[:, :, z].all()) for z in range(6)] == [False, True] * 3
    assert not mask[:, :, ::2].any()


def test_the_checkpoint_decides_and_the_command_line_may_only_add(weights):
    config = sampling_config(weights, {"sample_steps": 7, "seed": 4, "data_dir": "here", "num_channels": 32})
    assert (config.sampling.sample_steps, config.seed, config.data.data_dir) == (7, 4, "here")
    assert config.model.num_channels == 32 and config.diffusion.predict_xstart
    with pytest.raises(UserError, match="--noise_schedule: found cosine"):
        sampling_config(weights, {"noise_schedule": "cosine"})


def test_the_sampler_of_the_command_line_replaces_the_checkpoints(weights):
    def sampling(given, preset=None):
        chosen = sampling_config(weights, given, preset).sampling
        return chosen.sampler, chosen.sample_steps

    assert sampling({}) == ("ddim", 3), "as in the checkpoint"
    assert sampling({"sampler": "dpm-solver++"}) == ("dpm-solver++", 3)
    assert sampling({"sampler": "dpm-solver++", "sample_steps": 40}, "fast") == ("dpm-solver++", 40)
    assert sampling({"sampler": "ancestral"}) == ("ancestral", 0)
    assert sampling({"sampler": "ddim"}, "original") == ("ddim", 0)
    flags = {"sampler": "dpm-solver++", "diffusion_steps": 1000, "sample_steps": 20}
    assert sampling(flags) == ("dpm-solver++", 20)
    with pytest.raises(UserError, match="--diffusion_steps: found 50"):
        sampling_config(weights, {**flags, "diffusion_steps": 50})
    with pytest.raises(UserError, match="--diffusion_steps: found 50"):
        sampling_config(weights, {"diffusion_steps": 50})


@pytest.mark.parametrize("settings", [{"num_ensemble": 10_000}, {"num_ensemble": 50, "image_size": 8192}])
def test_an_ensemble_larger_than_the_memory_is_refused(settings, monkeypatch):
    monkeypatch.setattr(run, "memory_limit", lambda: 2**31)
    config = resolve({"image_size": 512, "in_ch": 4, "learn_sigma": True, **settings})
    with pytest.raises(UserError, match=f"--num_ensemble: found {settings['num_ensemble']:,} samples of 1 .*GiB"):
        check_ensemble(RandomDataset(length=1), config, 8)
    check_ensemble(RandomDataset(length=1), config.replace(num_ensemble=1, image_size=512), 8)


def test_data_scaled_by_another_rule_is_refused():
    config = small_config(normalisation="RGB / 255")
    with pytest.raises(UserError, match="as in training"):
        check_dataset(RandomDataset(), config, 1)


def test_what_depends_on_the_image_alone_is_computed_once_for_all_steps_and_members(backend, weights, monkeypatch):
    sampler = sampler_of(backend, weights)
    images = RandomDataset().images[:3]
    model = sampler.model
    keys = ["a", "b", "c"]
    batches = []
    name = "forward" if hasattr(model.hwm, "forward") else "execute"
    whole = getattr(model.hwm, name)
    monkeypatch.setattr(model.hwm, name, lambda image: batches.append(image.shape[0]) or whole(image))
    once = sampler(images, keys)
    assert batches == [3]
    monkeypatch.setattr(sampler, "_conditioning", lambda images: {})
    assert abs(sampler(images, keys) - once).max() < ROUNDING
    assert batches == [3, 6, 6, 6]  # two members, three steps

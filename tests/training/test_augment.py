"""Test the augmentation: identities of its transformations, and draws that depend only on the example's place."""

import dataclasses

import numpy as np
import pytest
from skimage.exposure import adjust_gamma
from skimage.transform import rotate
from support.small import RandomDataset, computing, small_config

from guided_diffusion_core import checkpoints, training
from guided_diffusion_core.config import TrainingConfig, resolve
from guided_diffusion_core.data.formats.transforms import RGB_RULE, ZSCORE_RULE, zscore
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.training.augment import (
    LINEAR,
    NEAREST,
    Augmentation,
    change_intensity,
    create_augmentation,
    warp,
)
from guided_diffusion_core.training.stream import TrainingStream

EVERYTHING = {
    "augment_flip": "both",
    "augment_rotation": 30.0,
    "augment_scale": 0.2,
    "augment_brightness": 0.1,
    "augment_contrast": 0.2,
    "augment_gamma": 0.3,
}
SHAPES_ONLY = {"augment_flip": "both", "augment_rotation": 180.0, "augment_scale": 0.3}


class SameDraws:
    """A noise tape with one value for every uniform number."""

    def __init__(self, value):
        self.value = value

    def uniform(self, site, shape, *, step):
        return np.full(shape, self.value)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).random((3, 32, 32)).astype(np.float32)


@pytest.fixture
def masks(pictures):
    """Return masks of two overlapping labels."""
    y, x = np.mgrid[:32, :32] - 15.5
    return np.stack([np.hypot(y - 3, x) < 9, np.hypot(y, x - 4) < 5]).astype(np.float32)


def augmentation(tape=None, normalisation="none", **settings):
    return Augmentation(TrainingConfig(**settings), normalisation, tape or NoiseTape(7))


@pytest.mark.parametrize("flip, axes", [("vertical", 1), ("horizontal", 2), ("both", (1, 2))])
def test_flips(pictures, masks, flip, axes):
    flipped = augmentation(SameDraws(0.49), augment_flip=flip)
    image, mask = flipped(pictures, masks, 0)
    np.testing.assert_array_equal(image, np.flip(pictures, axes))
    np.testing.assert_array_equal(mask, np.flip(masks, axes))
    for again, before in zip(flipped(image, mask, 0), (pictures, masks)):
        np.testing.assert_array_equal(again, before)
    image, _ = augmentation(SameDraws(0.5), augment_flip=flip)(pictures, masks, 0)
    np.testing.assert_array_equal(image, pictures)


@pytest.mark.parametrize("order", [LINEAR, NEAREST])
@pytest.mark.parametrize("size", [32, 33])
def test_quarter_turns_are_exact(order, size):
    pictures = np.random.default_rng(1).random((2, size, size)).astype(np.float32)
    for turns in range(-2, 5):
        np.testing.assert_allclose(
            warp(pictures, 90 * turns, 1, order), np.rot90(pictures, turns, axes=(1, 2)), atol=1e-6
        )


@pytest.mark.parametrize("degrees", [17.0, -63.0])
def test_rotation_is_that_of_another_library(pictures, degrees):
    for order in (LINEAR, NEAREST):
        expected = np.stack([rotate(picture, degrees, order=order, mode="constant") for picture in pictures])
        found = warp(pictures, degrees, 1, order)
        inside = np.hypot(*(np.mgrid[:32, :32] - 15.5)) < 15  # the two treat the outermost half pixel differently
        np.testing.assert_allclose(found[:, inside], expected[:, inside], atol=1e-5)


def test_scale_enlarges_about_the_centre(pictures):
    doubled = warp(pictures, 0, 2, NEAREST)
    np.testing.assert_array_equal(doubled, pictures[:, 8:24, 8:24].repeat(2, axis=1).repeat(2, axis=2))
    halved = warp(pictures, 0, 0.5, LINEAR)
    blocks = pictures.reshape(3, 16, 2, 16, 2).mean((2, 4))  # (3, 32, 32) -> (3, 16, 16)
    np.testing.assert_allclose(halved, np.pad(blocks, ((0, 0), (8, 8), (8, 8))), atol=1e-6)


def test_the_mask_follows_the_image(masks):
    """Augment an image that shows the masks: the mask is 1 where the image is 1, and 0 where the image is 0."""
    augment = augmentation(**SHAPES_ONLY)
    moved = 0
    for place in range(20):
        image, mask = augment(masks, masks, place)
        assert set(np.unique(mask)) <= {0, 1} and image.dtype == mask.dtype == np.float32
        assert (mask[image > 1 - 1e-6] == 1).all() and (mask[image < 1e-6] == 0).all()
        assert (np.abs(image - mask) < 1 - 1e-6).all()
        assert 0.3 < image.sum() / masks.sum() < 2
        moved += not np.array_equal(mask, masks)
    assert moved == 20


def test_intensities_of_colour_images(pictures):
    def change(shift=0, contrast=1, gamma=1):
        return change_intensity(pictures, RGB_RULE, shift, contrast, gamma)

    np.testing.assert_array_equal(change(), pictures)
    np.testing.assert_allclose(change(gamma=0.7), adjust_gamma(pictures.astype(float), 0.7), atol=1e-12)
    np.testing.assert_allclose(change(shift=0.3), np.minimum(pictures.astype(float) + 0.3, 1), atol=1e-12)
    softer = change(contrast=0.6)
    np.testing.assert_allclose(softer.mean((1, 2)), pictures.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(softer.std((1, 2)), 0.6 * pictures.std((1, 2)), atol=1e-6)


def test_intensities_of_volumes_leave_the_background(pictures):
    volume = np.where(pictures > 0.4, 1000 * pictures, 0)
    scaled = np.stack([zscore(channel) for channel in volume])
    changed = change_intensity(scaled, ZSCORE_RULE, 0.2, 1.3, 0.8)
    np.testing.assert_array_equal(changed[volume == 0], 0)
    for before, after, source in zip(scaled, changed, volume):
        inside = source > 0
        order = np.argsort(before[inside])
        assert (np.diff(after[inside][order]) >= 0).all() and after[inside].std() > before[inside].std()
    only_gamma = change_intensity(scaled, ZSCORE_RULE, 0, 1, 0.8)
    np.testing.assert_allclose([only_gamma.min(), only_gamma.max()], [scaled.min(), scaled.max()], rtol=1e-6)


@pytest.mark.parametrize("normalisation", [RGB_RULE, ZSCORE_RULE])
def test_images_without_contrast_stay_finite(normalisation):
    for value in (0, 0.5):
        image = np.full((1, 8, 8), value, np.float32)
        assert np.isfinite(change_intensity(image, normalisation, 0.1, 0.8, 1.2)).all()


def test_amounts_stay_in_their_ranges(monkeypatch, pictures, masks):
    from guided_diffusion_core.training import augment

    seen = []
    monkeypatch.setattr(augment, "change_intensity", lambda image, rule, *drawn: seen.append(list(drawn)) or image)
    monkeypatch.setattr(
        augment, "warp", lambda pictures, degrees, scale, order: seen[-1].extend([degrees, scale]) or pictures
    )
    run = augmentation(**EVERYTHING)
    for place in range(400):
        run(pictures, masks, place)
    for values, low, high in zip(zip(*seen), (-0.1, 0.8, 0.7, -30, 0.8), (0.1, 1.2, 1.3, 30, 1.2)):
        width = high - low
        assert low <= min(values) < low + 0.05 * width and high - 0.05 * width < max(values) <= high
    drawn = np.array(seen)[:, :5]
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.2, "one draw each"


def test_off_by_default():
    assert create_augmentation(TrainingConfig(), RGB_RULE, NoiseTape(0)) is None
    for name, value in EVERYTHING.items():
        assert create_augmentation(TrainingConfig(**{name: value}), RGB_RULE, NoiseTape(0)), name


def stream(batch_size=4, start_step=0, **settings):
    augment = augmentation(**{**EVERYTHING, **settings})
    return TrainingStream(RandomDataset(), NoiseTape(7), batch_size, 24 // batch_size, start_step, augment)


def test_an_example_depends_on_its_place_in_the_run_alone():
    whole = stream()
    for other, shift in ((stream(batch_size=3), 0), (stream(batch_size=1), 0), (stream(start_step=2), 8)):
        for k in (13, 0, 5):
            for found, expected in zip(other[k], whole[k + shift]):
                np.testing.assert_array_equal(found, expected)
    same_case = [k for k in range(24) if np.array_equal(stream_of_cases()[k], stream_of_cases()[0])]
    assert len(same_case) == 4
    first, *later = (whole[k][0] for k in same_case)
    assert not any(np.array_equal(first, image) for image in later), "each epoch has new draws"


def stream_of_cases():
    plain = TrainingStream(RandomDataset(), NoiseTape(7), 4, 6)
    return [plain[k][0] for k in range(24)]


def test_one_setting_does_not_change_the_draws_of_another():
    with_more = stream(augment_brightness=0.0, augment_contrast=0.0, augment_gamma=0.0)
    for k in range(4):
        np.testing.assert_array_equal(stream()[k][1], with_more[k][1])


@pytest.mark.parametrize(
    "name, value",
    [
        ("augment_rotation", 181.0),
        ("augment_rotation", -1.0),
        ("augment_scale", 1.0),
        ("augment_contrast", -0.1),
        ("augment_gamma", 1.0),
        ("augment_brightness", -0.5),
        ("augment_flip", "diagonal"),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(UserError, match=f"--{name}: found "):
        resolve({name: value})


def test_training_resumes_to_the_bit(backend, tmp_path):
    settings = {"max_steps": 2, **EVERYTHING}
    util = backend.module("train_util")
    config = small_config(**settings)
    with computing("float32"):
        values = [values for _, values in util.create_train_loop(config, RandomDataset()).run_loop(2)]
        first = util.create_train_loop(config, RandomDataset())
        assert [values for _, values in first.run_loop(1)] == values[:1]
        checkpoints.save(tmp_path, 1, config, first.networks())
        step, config, networks, _ = training.resumed_config("last", tmp_path, {})
        assert {name: dataclasses.asdict(config.training)[name] for name in EVERYTHING} == EVERYTHING
        resumed = util.create_train_loop(config, RandomDataset(), step=step, networks=networks)
        assert [values for _, values in resumed.run_loop(2)] == values[1:]
        image, _ = next(iter(util.create_train_loop(config, RandomDataset()).data))
    augment = Augmentation(config.training, "none", NoiseTape(config.seed))
    expected = [TrainingStream(RandomDataset(), NoiseTape(config.seed), 2, 2, augment=augment)[k][0] for k in (0, 1)]
    np.testing.assert_array_equal(backend.module("runtime").to_numpy(image), expected)
    with pytest.raises(UserError, match="--augment_flip: found none; expected 'both'"):
        training.resumed_config("last", tmp_path, {"augment_flip": "none"})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_either_backend_brings_the_same_arrays(backend, workers):
    util = backend.module("train_util")
    runtime = backend.module("runtime")
    expected = stream()
    for number, batch in enumerate(util.make_loader(stream(), 4, workers)):
        for part, found in enumerate(batch):
            wanted = np.stack([expected[k][part] for k in range(4 * number, 4 * number + 4)])
            assert runtime.to_numpy(found).tobytes() == wanted.tobytes()

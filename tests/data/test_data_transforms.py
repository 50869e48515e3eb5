"""Test resizing, intensity rules, the slice grammar and the order of training against independent results."""

import multiprocessing
import pickle

import numpy as np
import pytest
from PIL import Image
from skimage.transform import resize

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import open_dataset, phantoms
from guided_diffusion_core.data.formats.slices import parse_slices
from guided_diffusion_core.data.formats.transforms import resize_linear, resize_nearest, zscore
from guided_diffusion_core.data.formats.volumes import VolumeCache
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.noise import TRAIN_ORDER, NoiseTape
from guided_diffusion_core.training.stream import TrainingStream

SHAPES = [
    ((240, 240), (64, 64)),
    ((37, 53), (32, 64)),
    ((64, 64), (256, 128)),
    ((32, 32), (32, 32)),
    ((5, 7), (11, 3)),
    ((1, 4), (3, 1)),
]


@pytest.mark.parametrize("source, target", SHAPES)
def test_resizing_is_pillows(source, target):
    pictures = np.random.default_rng(0).normal(size=(2, 3, *source)).astype(np.float32)
    linear = resize_linear(pictures, target)
    nearest = resize_nearest(pictures, target)
    for i, j in np.ndindex(2, 3):
        picture = Image.fromarray(pictures[i, j])
        expected = np.asarray(picture.resize(target[::-1], Image.BILINEAR))
        np.testing.assert_allclose(linear[i, j], expected, atol=2e-6)
        np.testing.assert_array_equal(nearest[i, j], np.asarray(picture.resize(target[::-1], Image.NEAREST)))


def test_growing_is_bilinear_interpolation():
    pictures = np.random.default_rng(0).random((2, 20, 30))
    expected = resize(pictures, (2, 45, 71), order=1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(resize_linear(pictures, (45, 71)), expected, atol=1e-6)


def test_zscore_over_the_voxels_above_zero():
    volume = np.random.default_rng(0).integers(-2, 2000, (9, 8, 7)).astype(np.int16)
    volume[:3] = 0
    scaled = zscore(volume)
    inside = volume > 0
    values = volume[inside].astype(float)
    assert scaled.dtype == np.float32 and (scaled[~inside] == 0).all()
    np.testing.assert_allclose(scaled[inside], (values - values.mean()) / values.std(), atol=1e-5)


@pytest.mark.parametrize("volume", [np.zeros((3, 3, 3)), np.full((3, 3, 3), 7), np.full((3, 3, 3), np.nan)])
def test_zscore_of_a_volume_without_spread(volume):
    np.testing.assert_array_equal(zscore(volume), 0)


def test_cache_drops_the_least_recently_used():
    made = []

    def get(name):
        return cache.get(name, lambda: made.append(name) or np.zeros(10, np.uint8))

    cache = VolumeCache(limit=20)
    for name in "abacab":  # c replaces b, not a; then b replaces c
        get(name)
    assert made == ["a", "b", "c", "b"]


BRAIN = np.array([0, 1, 1, 1, 1, 1, 0, 0], bool)
TUMOUR = np.array([0, 0, 1, 0, 1, 1, 0, 0], bool)


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("all", range(8)),
        ("even", (0, 2, 4, 6)),
        ("odd", (1, 3, 5, 7)),
        ("brain", (1, 2, 3, 4, 5)),
        ("tumour", (2, 4, 5)),
        ("odd,tumour", (5,)),
        (" Even , TUMOUR ", (2, 4)),
        ("2:6", (2, 3, 4, 5)),
        ("::3", (0, 3, 6)),
        ("-2:", (6, 7)),
        ("::-3", (1, 4, 7)),
        ("brain,:4,::2", (2,)),
        ("even,odd", ()),
        ("5:100", (5, 6, 7)),
    ],
)
def test_slices(spec, expected):
    assert parse_slices(spec).select(8, BRAIN, TUMOUR) == tuple(expected)


@pytest.mark.parametrize("spec", ["", "evn", "odd,", "5", "1:2:3:4", "1:2:0", "a:b", "1.5:3", "tumor"])
def test_slices_outside_the_grammar(spec):
    with pytest.raises(UserError, match="--slices.*START:STOP:STEP"):
        parse_slices(spec)


def test_slices_say_what_they_need():
    assert parse_slices("odd,tumour").needs_tumour and not parse_slices("odd,tumour").needs_brain
    assert parse_slices("1:9,brain").needs_brain and not parse_slices("all").needs_tumour


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    phantoms.write_brats_phantom(folder, "A", (16, 16, 10), 0)
    config = DataConfig(data_name="BRATS", data_dir=str(folder), slices="1:8")
    return open_dataset(config, 32, "Training", need_masks=True)


def test_stream_runs_through_permutations(dataset):
    tape = NoiseTape(5)
    stream = TrainingStream(dataset, tape, batch_size=4, max_steps=5)
    assert len(stream) == 20
    order = np.concatenate([tape.permutation(TRAIN_ORDER, 7, step=epoch) for epoch in range(3)])
    for k in range(20):
        image, mask = stream[k]
        np.testing.assert_array_equal(image, dataset[order[k]].image)
        np.testing.assert_array_equal(mask, dataset[order[k]].mask)
    with pytest.raises(IndexError):
        stream[20]
    with pytest.raises(IndexError):
        stream[-1]


def test_stream_resumes_where_it_was(dataset):
    whole = TrainingStream(dataset, NoiseTape(5), batch_size=4, max_steps=5)
    rest = TrainingStream(dataset, NoiseTape(5), batch_size=4, max_steps=5, start_step=3)
    assert len(rest) == 8
    for k in (7, 0, 3):
        np.testing.assert_array_equal(rest[k][0], whole[12 + k][0])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_stream_in_other_processes(dataset, method):
    stream = TrainingStream(dataset, NoiseTape(5), batch_size=4, max_steps=5)
    with multiprocessing.get_context(method).Pool(1) as pool:
        images = pool.map(stream.__getitem__, [9, 2])
    for k, (image, mask) in zip((9, 2), images):
        np.testing.assert_array_equal(image, stream[k][0])
        np.testing.assert_array_equal(mask, stream[k][1])
    assert len(pickle.dumps(stream)) < 10_000

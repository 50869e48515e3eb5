"""The Python interface: equal to the commands on the same files, strict about arrays, and as its page says."""

import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support.backends import ROOT
from support.small import NETWORK, small_config

import medsegdiff
from guided_diffusion_core import backends, checkpoints
from guided_diffusion_core.data.formats.transforms import RGB_RULE, ZSCORE_ALL_RULE, ZSCORE_RULE
from guided_diffusion_core.data.phantoms import write_brats_phantom, write_image_phantoms, write_volume_phantoms
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.registry import initial_state
from guided_diffusion_core.results.outputs import find_output, read_output
from medsegdiff import load, train

SAMPLING = {"num_ensemble": 2, "sample_steps": 2}


def save_network(folder, **settings):
    """Write a checkpoint of the small network.

    Its weights are moved away from the initial ones, with which the output is zero whatever the image.
    """
    config = small_config(sampler="ddim", **settings)
    weights = initial_state(config.model, config.seed)
    generator = np.random.default_rng(0)
    for name, values in weights.items():
        if values.dtype == np.float32 and "running" not in name:
            weights[name] = values + 0.05 * generator.standard_normal(values.shape).astype(np.float32)
    checkpoints.save(folder, 1, config, {"model": weights})
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(run of a network of pictures, folder of data, path of one picture)."""
    folder = tmp_path_factory.mktemp("pictures")
    write_image_phantoms(folder / "data", 2, 48, seed=1)
    run = save_network(folder / "run", data_name="IMAGES", normalisation=RGB_RULE)
    return run, folder / "data", sorted((folder / "data" / "images").iterdir())[0]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """The same for volumes of one channel."""
    folder = tmp_path_factory.mktemp("volumes")
    write_volume_phantoms(folder / "data", 1, (40, 36, 3), seed=1)
    run = save_network(folder / "run", data_name="VOLUMES", normalisation=ZSCORE_ALL_RULE, in_ch=2)
    return run, folder / "data", sorted((folder / "data" / "images").iterdir())[0]


def sampled(command, backend, run, data_dir, out_dir, name, *flags):
    """Masks, probability and uncertainty that `medsegdiff sample` writes for a case."""
    arguments = [part for flag, value in SAMPLING.items() for part in (f"--{flag}", value)]
    code, _, errors = command(
        "segmentation_sample",
        *("--backend", backend.name, "--model_path", run, "--data_dir", data_dir, "--out_dir", out_dir),
        *arguments,
        *flags,
    )
    assert code == 0, errors
    return {kind: read_output(find_output(str(out_dir), name, kind)) for kind in ("mask", "probability", "uncertainty")}


def assert_same(result, written):
    for kind, expected in written.items():
        found = getattr(result, kind)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_picture_is_segmented_as_by_the_command(command, backend, pictures, tmp_path):
    run, data_dir, path = pictures
    written = sampled(command, backend, run, data_dir, tmp_path / "masks", path.stem, "--seed", 5)
    model = load(run, backend=backend.name)
    result = model.segment(path, seed=5, **SAMPLING)
    assert_same(result, written)
    array = np.asarray(Image.open(path).convert("RGB"))
    assert_same(model.segment(array, name=path.stem, seed=5, **SAMPLING), written)
    assert result.name == path.stem and result.labels == ("mask",)
    assert result.mask.shape == array.shape[:2] and result.members.shape == (2, *array.shape[:2])
    assert result.members.min() >= 0 and result.members.max() <= 1
    # the fused arrays are those of the members, up to the rounding of the resize
    np.testing.assert_allclose(result.members.mean(axis=0), result.probability, atol=1e-6)
    assert result.uncertainty.min() >= 0 and 0 < result.uncertainty.max() <= 0.5, "the members differ"
    np.testing.assert_array_equal(result.mask, result.probability >= np.float32(0.5))
    assert np.any(model.segment(array[::-1], name=path.stem, seed=5, **SAMPLING).members != result.members)


def test_volume_is_segmented_as_by_the_command(command, backend, volumes, tmp_path):
    run, data_dir, path = volumes
    name = path.name.removesuffix(".nii.gz")
    written = sampled(command, backend, run, data_dir, tmp_path / "masks", name, "--batch_size", 2)
    written = {kind: np.moveaxis(values, 2, 0) for kind, values in written.items()}
    model = load(run, backend=backend.name)
    assert_same(model.segment(path, batch_size=2, **SAMPLING), written)
    voxels = np.asanyarray(nib.load(path).dataobj)
    array = np.moveaxis(voxels, 2, 0)[..., None]
    result = model.segment(array, name=name, batch_size=2, **SAMPLING)
    assert_same(result, written)
    assert result.members.shape == (2, 3, 40, 36)


def test_folder_is_segmented_as_by_the_command(command, backend, pictures, tmp_path):
    run, data_dir, path = pictures
    model = load(run, backend=backend.name)
    out_dir = model.segment_folder(data_dir, tmp_path / "api", batch_size=2, **SAMPLING)
    sampled(command, backend, run, data_dir, tmp_path / "masks", path.stem, "--batch_size", 2)
    names = {file.name for file in out_dir.iterdir()}
    assert names == {file.name for file in (tmp_path / "masks").iterdir()}
    for name in names - {"run_report.json"}:
        assert (out_dir / name).read_bytes() == (tmp_path / "masks" / name).read_bytes()


def test_array_of_several_channels_is_the_folder_of_its_files(tmp_path):
    write_brats_phantom(tmp_path / "data", "BraTS2021_00001", (40, 44, 3), seed=2)
    run = save_network(tmp_path / "run", data_name="BRATS", normalisation=ZSCORE_RULE, in_ch=5)
    model = load(run)
    expected = model.segment(tmp_path / "data", **SAMPLING)
    channels = []
    for part in ("t1", "t1ce", "t2", "flair"):
        [path] = (tmp_path / "data").rglob(f"*_{part}.nii.gz")
        channels.append(np.moveaxis(np.asanyarray(nib.load(path).dataobj), 2, 0))
    result = model.segment(np.stack(channels, axis=-1), name=expected.name, **SAMPLING)
    for kind in ("mask", "probability", "uncertainty", "members"):
        np.testing.assert_array_equal(getattr(result, kind), getattr(expected, kind))


def test_several_labels_come_first(tmp_path):
    labels = "cup,disc"
    run = save_network(
        tmp_path / "run", data_name="REFUGE2", normalisation=RGB_RULE, in_ch=5, mask_channels=2, labels=labels
    )
    result = load(run).segment(np.zeros((20, 24, 3), np.uint8), **SAMPLING)
    assert result.labels == ("cup", "disc")
    assert result.mask.shape == (2, 20, 24) and result.members.shape == (2, 2, 20, 24)


def test_seed_and_name_choose_the_noise(pictures):
    model = load(pictures[0])
    array = np.full((32, 32, 3), 128, np.uint8)
    first = model.segment(array, **SAMPLING).members
    np.testing.assert_array_equal(model.segment(array, **SAMPLING).members, first)
    assert np.any(model.segment(array, seed=9, **SAMPLING).members != first)
    assert np.any(model.segment(array, name="other", **SAMPLING).members != first)


def test_depths_of_one_picture_agree(pictures):
    """8 bits, the same as 16 bits and as floating point: 257 x 255 = 65535."""
    model = load(pictures[0])
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 1), np.uint8)  # the network's size: no resize
    expected = model.segment(array, **SAMPLING).probability
    for other in (array.astype(np.uint16) * 257, (array / 255).astype(np.float32), np.repeat(array, 3, axis=2)):
        np.testing.assert_allclose(model.segment(other, **SAMPLING).probability, expected, atol=1e-5)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((8, 8), np.uint8), "the shape (8, 8); expected (H, W, C)"),
        (np.zeros((8, 8, 4), np.uint8), "the shape (8, 8, 4)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "the shape (2, 8, 8, 3)"),
        (np.zeros((0, 8, 3), np.uint8), "the shape (0, 8, 3)"),
        (np.zeros((8, 8, 3), np.int64), "the type int64"),
        (np.zeros((8, 8, 3), bool), "the type bool"),
        (np.full((8, 8, 3), 255.0), "float64 values from 255 to 255"),
        (np.full((8, 8, 3), np.nan), "float64 values from nan to nan"),
        (np.zeros((8, 8, 3), np.uint32), "uint32 values"),
        ([[[]]], "the shape (1, 1, 0)"),
    ],
)
def test_ambiguous_pictures_are_refused(pictures, array, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(pictures[0]).segment(array)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((8, 8, 1)), "the shape (8, 8, 1); expected (D, H, W, C) with C = 1"),
        (np.zeros((2, 8, 8)), "the shape (2, 8, 8)"),
        (np.zeros((2, 8, 8, 4)), "the shape (2, 8, 8, 4)"),
        (np.zeros((2, 8, 8, 1), complex), "the type complex128"),
        (np.full((2, 8, 8, 1), np.inf), "128 values that are not finite"),
    ],
)
def test_ambiguous_volumes_are_refused(volumes, array, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load(volumes[0]).segment(array)


def test_sources_of_another_kind_are_refused(pictures, volumes, tmp_path):
    model = load(pictures[0])
    for source in (volumes[2], tmp_path / "nowhere.png", pictures[1]):
        with pytest.raises(UserError):
            model.segment(source)
    with pytest.raises(UserError, match="was not trained for"):
        load(volumes[0]).segment(pictures[2])
    with pytest.raises(UserError, match="name"):
        model.segment(pictures[2], name="other")
    run = save_network(tmp_path / "run", data_name="NNUNET", normalisation="channel 0000: as stored", in_ch=2)
    with pytest.raises(UserError, match="segment_folder"):
        load(run).segment(np.zeros((2, 8, 8, 1)))


def test_settings_are_those_of_the_flags(pictures):
    model = load(pictures[0])
    array = np.zeros((8, 8, 3), np.uint8)
    for settings in ({"lr": 1e-3}, {"ensemble": 3}, {"data_name": "ISIC"}):
        with pytest.raises(TypeError, match="unknown settings: " + next(iter(settings))):
            model.segment(array, **settings)
    with pytest.raises(UserError, match="--num_ensemble"):
        model.segment(array, num_ensemble=0)
    with pytest.raises(TypeError, match="unknown settings: epochs"):
        train("data", "run", epochs=3)


def test_load_refuses_what_is_not_there(pictures, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="backend: found 'jax'; expected pytorch or jittor"):
        load(pictures[0], backend="jax")
    with pytest.raises(UserError, match="device"):
        load(pictures[0], device="tpu")
    monkeypatch.setattr(backends, "is_installed", lambda name: False)
    with pytest.raises(UserError, match="no backend is installed"):
        load(pictures[0])


def test_training_from_python_is_that_of_the_command(command, backend, pictures, tmp_path):
    """The same seed gives the same weights; the model that comes back is the last checkpoint."""
    settings = {**{name: value for name, value in NETWORK.items() if name != "in_ch"}, "batch_size": 2, "max_steps": 2}
    model = train(
        pictures[1], tmp_path / "api", backend=backend.name, preset="fast", seed=4, data_name="IMAGES", **settings
    )
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    data = ("--data_name", "IMAGES", "--data_dir", pictures[1], "--out_dir", tmp_path / "command")
    code, _, errors = command(
        "segmentation_train", "--backend", backend.name, "--preset", "fast", "--seed", 4, *data, *flags
    )
    assert code == 0, errors
    (config, arrays), (_, expected) = (
        checkpoints.load(checkpoints.find(str(tmp_path / name))) for name in ("api", "command")
    )
    assert model.config == config and config.seed == 4
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    longer = train(pictures[1], tmp_path / "api", backend=backend.name, data_name="IMAGES", resume="last", max_steps=3)
    assert longer.config.seed == 4 and longer.config.training.max_steps == 3


def test_the_pages_example_runs(tmp_path, monkeypatch, capsys):
    """The code of docs/api.md, with two steps of training in place of its 300."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert code.count("max_steps=300") == 1
    write_image_phantoms(tmp_path / "data" / "train", 4, 64, seed=1)
    write_image_phantoms(tmp_path / "data" / "test", 1, 64, seed=2)
    shutil.rmtree(tmp_path / "data" / "test" / "masks")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("max_steps=300", "max_steps=2"), "docs/api.md", "exec"), {})
    assert "\n(64, 96) bool\n" in capsys.readouterr().out
    assert len(list((tmp_path / "masks").glob("*_mask.png"))) == 1


def test_package_offers_what_it_lists():
    for name in medsegdiff.__all__:
        assert getattr(medsegdiff, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = medsegdiff.nothing

"""Test on real files: BraTS volumes are compared with nibabel, and pairs of REFUGE2 and DDTI with Pillow."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths, open_dataset
from guided_diffusion_core.data.layouts.brats import MODALITIES
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.results.outputs import CaseWriter

CASES = {"BraTS2021_00000": "Train", "BraTS2021_01201": "Test"}


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data / "BraTS2021"


@pytest.fixture(scope="module")
def volumes(folder):
    """Return a dict of case -> modality -> nibabel image."""
    return {
        case: {part: nib.load(folder / split / case / f"{case}_{part}.nii.gz") for part in (*MODALITIES, "seg")}
        for case, split in CASES.items()
    }


@pytest.fixture(scope="module")
def native(folder):
    """Return the dataset in the size of the volumes, so that nothing is resized."""
    return open_dataset(DataConfig(data_dir=str(folder), slices="tumour"), 240, "Training", need_masks=True)


def test_normalisation_and_labels(native, volumes):
    for case in native.cases():
        sources = volumes[case.name]
        z = case.slices[len(case.slices) // 2]
        example = native[case.indices[len(case.slices) // 2]]
        for channel, modality in zip(example.image, MODALITIES):
            values = sources[modality].get_fdata()
            brain = values[values > 0]
            expected = np.where(values > 0, (values - brain.mean()) / brain.std(), 0)[:, :, z]
            np.testing.assert_allclose(channel, expected, atol=1e-4)
        np.testing.assert_array_equal(example.mask[0], sources["seg"].get_fdata()[:, :, z] > 0)


def test_slice_filters_count_as_nibabel(folder, volumes):
    tumour = {case: (parts["seg"].get_fdata() > 0).any((0, 1)) for case, parts in volumes.items()}
    brain = {
        case: np.any([parts[m].get_fdata() > 0 for m in MODALITIES], axis=(0, 1, 2)) for case, parts in volumes.items()
    }
    odd = np.arange(155) % 2 == 1
    for spec, expected in (
        ("odd,tumour", {case: tumour[case] & odd for case in CASES}),
        ("brain", brain),
        ("odd", dict.fromkeys(CASES, odd)),
    ):
        config = DataConfig(data_dir=str(folder), slices=spec)
        cases = open_dataset(config, 64, "Test", need_masks=False).cases()
        assert {case.name: case.slices for case in cases} == {
            case: tuple(np.flatnonzero(kept)) for case, kept in expected.items()
        }
        assert {truth.name: truth.slices for truth in list_truths(config)} == {case.name: case.slices for case in cases}


def test_written_volumes_lie_on_the_source_grid(native, volumes, tmp_path):
    for case in native.cases():
        truth = np.stack([native[index].mask[0] for index in case.indices])
        paths = CaseWriter(tmp_path).write(case, truth, 0.25 * truth, threshold=0.5)
        source = volumes[case.name]["seg"]
        for kind, path in paths.items():
            image = nib.load(path)
            assert image.shape == source.shape and (image.affine == source.affine).all()
            assert image.header.get_zooms() == source.header.get_zooms()
            assert image.get_data_dtype() == (np.uint8 if kind == "mask" else np.float32)
        expected = source.get_fdata() > 0  # all slices with tumour were written
        np.testing.assert_array_equal(np.asarray(nib.load(paths["mask"]).dataobj), expected)
        np.testing.assert_array_equal(nib.load(paths["uncertainty"]).get_fdata(), 0.25 * expected)


def test_regions(folder, volumes):
    config = DataConfig(data_dir=str(folder), labels="whole_tumour,tumour_core,enhancing")
    for truth in list_truths(config):
        labels = volumes[truth.name]["seg"].get_fdata()
        assert set(np.unique(labels)) == {0, 1, 2, 4}
        expected = [labels > 0, (labels == 1) | (labels == 4), labels == 4]
        np.testing.assert_array_equal(read_truth_masks(truth), expected)


def test_refuge2(shared_data):
    config = DataConfig(data_name="REFUGE2", data_dir=str(shared_data / "REFUGE2"))
    [truth] = list_truths(config)
    dataset = open_dataset(config, 64, "Training", need_masks=True)
    grey = np.asarray(Image.open(truth.path).convert("L"))  # cup 0, rim 128, background 255
    disc, cup = read_truth_masks(truth)
    np.testing.assert_array_equal(disc, grey != 255)
    np.testing.assert_array_equal(cup, grey == 0)
    assert (cup.sum(), disc.sum(), cup.shape) == (10768, 40950, dataset.cases()[0].shape)
    # the disc is brighter than the rest, and the cup brighter than the rim around it
    picture = np.asarray(Image.open(shared_data / "REFUGE2/Train/Disc_Cup_Fovea_Illustration/T0001.jpg")).mean(axis=-1)
    assert picture[cup].mean() > picture[disc & ~cup].mean() > picture[~disc].mean()
    assert (dataset[0].mask[1] <= dataset[0].mask[0]).all() and dataset[0].mask[1].any()


def test_ddti(shared_data):
    for folder in (shared_data / "DDTI", shared_data / "DDTI" / "Train"):
        config = DataConfig(data_name="DDTI", data_dir=str(folder))
        [truth] = list_truths(config, "Training")
        dataset = open_dataset(config, 64, "Training", need_masks=True)
        stored = np.asarray(Image.open(truth.path))
        assert truth.name == "1" and set(np.unique(stored)) == {0, 255}
        np.testing.assert_array_equal(read_truth_masks(truth)[0], stored == 255)
        image = dataset[0].image
        assert image.shape == (3, 64, 64) and (image[0] == image[1]).all() and (image[0] == image[2]).all()

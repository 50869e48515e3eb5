"""Test what volumes may hold: which numbers, which axes, which grids; training and `check-data` agree on all of it."""

import gzip
import itertools
import struct

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import affine_transform, gaussian_filter
from support.agreement import agree

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths, open_dataset
from guided_diffusion_core.data.phantoms import write_brats_phantom
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.evaluation import evaluate
from guided_diffusion_core.sampling.run import SamplingRun

SHAPE = (24, 20, 6)
# places in the header of NIfTI-1
DATATYPE = 70
SLOPE = 112
SROW_Y = 296
AFFINE = nib.affines.from_matvec(np.diag([-1.0, -1, 3]), [23, 19, -4])


def box():
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:12, 8:14, 2:5] = 1
    return labels


def noise(seed=0):
    return np.random.default_rng(seed).normal(100, 20, SHAPE).astype(np.int16)


def save(path, values, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def patch(path, place, content):
    """Overwrite bytes of a NIfTI header, for what nibabel does not write."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[place : place + len(content)] = content
    path.write_bytes(gzip.compress(raw))


def write(folder, mask=None):
    """Write two cases of plain volumes with an image and a mask each."""
    for seed in (0, 1):
        save(folder / "images" / f"v{seed}.nii.gz", noise(seed))
        save(folder / "masks" / f"v{seed}.nii.gz", box() if mask is None else mask)
    return folder


def opened(folder):
    return open_dataset(DataConfig("VOLUMES", str(folder)), 32, "Training", True)


def resampled(values):
    return affine_transform(values.astype(np.float32), np.eye(3), offset=0.4, order=1)


FRACTIONS = {
    "linear resampling": resampled(box()),
    "linear resampling of 255": resampled(box() * 255),
    "probabilities": gaussian_filter(box().astype(np.float32), 1),
    "one value": np.where(np.arange(SHAPE[2]) == 2, 0.4, 0).astype(np.float32) * box(),
}


@pytest.mark.parametrize("kind", FRACTIONS)
def test_fractions_in_a_mask(kind, tmp_path):
    """Refuse them with values, number and mend; take half of the highest value as the threshold where it is given."""
    mask = FRACTIONS[kind]
    half = mask.max() / 2
    refused = agree(write(tmp_path, mask=mask), "VOLUMES")
    fractions = np.abs(mask - np.rint(mask)) > 1e-3
    assert len(refused) == 2
    for text in refused:
        assert f"which are not whole ({fractions.sum()} of {mask.size} values)" in text
        assert f"--mask_threshold {half:.4g}" in text
    assert agree(tmp_path, "VOLUMES", mask_threshold=float(half)) == []
    truth = list_truths(DataConfig("VOLUMES", str(tmp_path), mask_threshold=float(half)))[0]
    np.testing.assert_array_equal(read_truth_masks(truth)[0], mask >= half)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_mask_with_numbers_that_are_not_finite(value, tmp_path):
    mask = box().astype(np.float32)
    mask[0, :3, 0] = value
    for threshold in (0.0, 0.5):
        refused = agree(write(tmp_path, mask=mask), "VOLUMES", mask_threshold=threshold)
        assert len(refused) == 2 and f"label values {value:g} (3 of".replace("nan", "NaN") in refused[0]


def test_fractions_between_labels(tmp_path):
    """Labels have no threshold: a value between two of them may be a third one."""
    (tmp_path / "labels.json").write_text('{"edema": 1, "core": 2}')
    write(tmp_path, mask=resampled(box() * 2))
    for threshold in (0.0, 0.5):
        [first, _] = agree(tmp_path, "VOLUMES", mask_threshold=threshold)
        assert "which are not whole" in first and "to the nearest neighbour." in first


@pytest.mark.parametrize("stored, slope", [(255, 1 / 255), (51, 1 / 51), (200, 0.005), (7, np.float32(1) / 7)])
def test_a_slope_that_misses_whole_numbers_by_a_little(stored, slope, tmp_path):
    (tmp_path / "labels.json").write_text('{"lesion": 1}')
    write(tmp_path, mask=box() * np.uint8(stored))
    for path in (tmp_path / "masks").iterdir():
        patch(path, SLOPE, struct.pack("<ff", slope, 0))
    assert agree(tmp_path, "VOLUMES") == []
    truth = list_truths(DataConfig("VOLUMES", str(tmp_path)))[0]
    np.testing.assert_array_equal(read_truth_masks(truth)[0], box() > 0)


def test_a_value_near_a_whole_number_is_printed_with_its_digits(tmp_path):
    (tmp_path / "labels.json").write_text('{"lesion": 1}')
    [first, _] = agree(write(tmp_path, mask=box() * np.float64(1.00201)), "VOLUMES")
    assert "label values 1.00201, which are not whole" in first


@pytest.mark.parametrize("part", ["images", "masks"])
@pytest.mark.parametrize(
    "dtype, words",
    [
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "3 numbers per voxel (R, G, B)"),
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]), "4 numbers per voxel (R, G, B, A)"),
        (np.dtype(np.complex64), "complex numbers"),
        (np.dtype(np.complex128), "complex numbers"),
    ],
)
def test_voxels_that_are_no_plain_numbers(part, dtype, words, tmp_path):
    write(tmp_path)
    save(tmp_path / part / "v1.nii.gz", np.zeros(SHAPE, dtype))
    [text] = agree(tmp_path, "VOLUMES")
    assert f"{part}/v1.nii.gz: found {words}; expected one number" in text


@pytest.mark.parametrize("code", [1, 1536, 2048])  # single bits; 128 and 256 bits, which few machines compute with
def test_codes_of_nifti_without_a_number_here(code, tmp_path):
    write(tmp_path)
    patch(tmp_path / "images" / "v0.nii.gz", DATATYPE, struct.pack("<h", code))
    [text] = agree(tmp_path, "VOLUMES")
    assert "images/v0.nii.gz: found" in text and "expected one number of at most 64 bits" in text


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_axes_of_length_one_behind_the_volume(axes, tmp_path):
    """Read them as the same volume without these axes; the labels may have them or not."""
    long = (*SHAPE, *(1,) * axes)
    write(tmp_path / "flat")
    write(tmp_path / "long")
    for seed in (0, 1):
        save(tmp_path / "long" / "images" / f"v{seed}.nii.gz", noise(seed).reshape(long))
    save(tmp_path / "long" / "masks" / "v1.nii.gz", box().reshape(long))
    assert agree(tmp_path / "long", "VOLUMES") == []
    flat, found = (opened(tmp_path / name) for name in ("flat", "long"))
    assert len(flat) == len(found)
    for first, second in zip((flat[k] for k in range(len(flat))), (found[k] for k in range(len(found)))):
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.mask, second.mask)


@pytest.mark.parametrize("shape", [(*SHAPE, 2), (*SHAPE, 1, 3), SHAPE[:2], (1, *SHAPE)])
def test_other_numbers_of_axes(shape, tmp_path):
    write(tmp_path)
    save(tmp_path / "images" / "v0.nii.gz", np.ones(shape, np.float32))
    [text] = agree(tmp_path, "VOLUMES")
    assert f"found an array of shape {shape}; expected a volume with three axes" in text


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("layout, part", [("BRATS", "t1"), ("BRATS", "flair"), ("VOLUMES", "image")])
def test_one_voxel_that_is_not_finite(layout, part, value, tmp_path):
    """Name the file and count the voxels in every layout."""
    if layout == "BRATS":
        write_brats_phantom(tmp_path, "A", SHAPE, 0)
        path = tmp_path / "A" / f"A_{part}.nii.gz"
    else:
        write(tmp_path)
        path = tmp_path / "images" / "v0.nii.gz"
    image = nib.load(path)
    values = image.get_fdata().astype(np.float32)
    values[12, 10, 3] = value
    save(path, values, image.affine)
    [text] = agree(tmp_path, layout)
    assert f"{path.name}: found 1 values that are not finite" in text


def moved(affine):
    far = affine.copy()
    far[2, 3] += 50
    return far


@pytest.mark.parametrize(
    "affine",
    [moved(AFFINE), np.eye(4), AFFINE @ np.diag([1, 1, 2, 1]), AFFINE @ np.diag([-1, 1, 1, 1])],
    ids=["50 mm away", "identity", "other spacing", "mirrored"],
)
def test_labels_on_another_grid_than_the_image(affine, tmp_path):
    """Name both affines, and do not advise to resample labels whose header alone is wrong."""
    write(tmp_path)
    save(tmp_path / "masks" / "v1.nii.gz", box(), affine)
    [text] = agree(tmp_path, "VOLUMES")
    assert "masks/v1.nii.gz: found affine [[" in text and "expected the points of affine [[" in text
    assert "save it with the other file's affine" in text


@pytest.mark.parametrize("code", ["RAS", "PIR", "ASL"])
def test_labels_in_another_order_of_axes_than_the_image(code, tmp_path):
    """Bring labels that have the image's points in another order onto them: the examples are the same."""
    write(tmp_path / "same")
    write(tmp_path / "turned")
    path = tmp_path / "turned" / "masks" / "v1.nii.gz"
    target = nib.orientations.axcodes2ornt(code)
    nib.save(nib.load(path).as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(AFFINE), target)), path)
    assert agree(tmp_path / "turned", "VOLUMES") == []
    same, turned = (
        open_dataset(DataConfig("VOLUMES", str(tmp_path / k)), 32, "Training", True) for k in ("same", "turned")
    )
    for index in range(len(same)):
        np.testing.assert_array_equal(same[index].mask, turned[index].mask)


@pytest.mark.parametrize("row", [(0, 0, 0, 5), (np.nan,) * 4, (-1, 0, 0, 5), (0, np.inf, 0, 0)])
def test_an_affine_without_a_volume(row, tmp_path):
    write(tmp_path)
    for path in tmp_path.rglob("v0.nii.gz"):
        patch(path, SROW_Y, struct.pack("<4f", *row))
    [text] = agree(tmp_path, "VOLUMES")
    assert "found an affine that cannot be inverted" in text


def test_all_kinds_of_numbers_that_are_plain(tmp_path):
    """Accept every other type that a NIfTI file can have, in images and masks."""
    types = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
    for first, second in itertools.pairwise(types):
        folder = tmp_path / first
        for seed in (0, 1):
            image = nib.Nifti1Image(noise(seed).clip(0, 120).astype(first), AFFINE, dtype=first)
            mask = nib.Nifti1Image(box().astype(second), AFFINE, dtype=second)
            for part, volume in (("images", image), ("masks", mask)):
                (folder / part).mkdir(parents=True, exist_ok=True)
                nib.save(volume, folder / part / f"v{seed}.nii.gz")
        assert agree(folder, "VOLUMES") == []


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1), SHAPE])
def test_results_have_the_stored_shape_of_the_source(shape, tmp_path):
    """A mask opens beside its source, also if that has axes of length 1 behind the volume; it is scored as usual."""
    write(tmp_path / "data")
    for seed in (0, 1):
        save(tmp_path / "data" / "images" / f"v{seed}.nii.gz", (noise(seed) + 900 * box()).reshape(shape))
    config = DataConfig("VOLUMES", str(tmp_path / "data"))
    dataset = open_dataset(config, 32, "Test", need_masks=False)
    SamplingRun(dataset, tmp_path / "out", 4, 0.5, {}).run(
        lambda images, _: (images[None, :, :1] > 1).astype(np.float32)
    )
    source = nib.load(tmp_path / "data" / "images" / "v1.nii.gz")
    for kind in ("mask", "probability", "uncertainty"):
        found = nib.load(tmp_path / "out" / f"v1_{kind}.nii.gz")
        assert found.shape == source.shape == shape
        np.testing.assert_array_equal(found.affine, source.affine)
    assert evaluate(tmp_path / "out", list_truths(config), 0.5)["mean"]["mask"]["Dice"] > 0.8

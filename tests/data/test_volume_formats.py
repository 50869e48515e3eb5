"""Test volumes in other formats than NIfTI: the same voxels and the same place, in layouts, sampling and scoring."""

import locale
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from support.agreement import agree
from support.fuzzing import time_limit
from support.mutants import mutants
from support.small import small_config

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import layout_name, list_truths, open_dataset
from guided_diffusion_core.data.formats.transforms import RGB_RULE, ZSCORE_ALL_RULE
from guided_diffusion_core.data.formats.volumes import read_geometry, read_with_geometry
from guided_diffusion_core.data.single import open_file
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.evaluation import evaluate
from guided_diffusion_core.sampling.run import SamplingRun

SHAPE = (14, 12, 5)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([0.7, 1.1, 3]), [-31.5, 12.25, 7]
)
LAS = nib.affines.from_matvec(np.diag([-1.0, 1, 2.5]), [6, -5, -4])
ITK_FORMATS = (".mha", ".mhd", ".nrrd")
UID = "1.2.826.0.1.3680043.2.1125"


def voxels(seed=0):
    image = np.random.default_rng(seed).integers(0, 500, SHAPE).astype(np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 2:8, 1:4] = 1
    return image + 1500 * labels.astype(np.int16), labels


def itk_image(array, affine):
    """Return SimpleITK's image of an array (X, Y, Z) with an affine in RAS+; ITK's axes are LPS."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def write_series(folder, array, affine, names=None, number=1, is_compressed=False):
    """Write a DICOM series, one file per slice, in the reverse order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    image = itk_image(array, affine)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetUseCompression(is_compressed)
    before = locale.setlocale(locale.LC_ALL)
    for z in range(array.shape[2]):
        plane = image[:, :, z]
        tags = {
            "0008|0060": "CT",
            "0020|000d": UID,
            "0020|000e": f"{UID}.{number}",
            "0008|0018": f"{UID}.{number}.{z}",
            "0020|0013": str(z + 1),
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, z)))),
            "0020|0037": "\\".join(map(str, direction[:, :2].T.ravel())),
        }
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        path = folder / f"slice{array.shape[2] - z}.dcm"
        writer.SetFileName(str(path))
        writer.Execute(plane)
        if names:
            path.rename(folder / names.format(z))
    # writing DICOM sets the locale to C, in which Python opens texts as ASCII; reading does not
    locale.setlocale(locale.LC_ALL, before)


def save(path, array, affine):
    """Write an array in the format of the path's ending; without one as a DICOM series."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in ITK_FORMATS:
        SimpleITK.WriteImage(itk_image(array, affine), str(path))
    elif path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == "":
        write_series(path, array, affine)
    else:
        nib.save(nib.Nifti1Image(array, affine), path)


def write_set(folder, ending, affine=LAS, mask_ending=None):
    """Write two cases of plain volumes in a format."""
    for seed in (0, 1):
        image, labels = voxels(seed)
        save(folder / "images" / f"v{seed}{ending}", image, affine)
        save(folder / "masks" / f"v{seed}{mask_ending or ending or '.nii.gz'}", labels, affine)
    return DataConfig("VOLUMES", str(folder))


def bright(images, keys):
    """Sample without a network: what is bright, by one member."""
    return (images[None, :, :1] > 1).astype(np.float32)


@pytest.mark.parametrize("affine", [OBLIQUE, LAS, np.diag([1.0, 2, 3, 1])], ids=["oblique", "LAS", "RAS"])
@pytest.mark.parametrize("ending", [*ITK_FORMATS, ""])
def test_the_same_voxels_and_the_same_affine_as_in_nifti(ending, affine, tmp_path):
    """Write one volume with nibabel and with SimpleITK, and compare what is read.

    DICOM keeps 16 digits, and its slices are in the order of a right-handed system of axes, which LAS is not.
    """
    array, _ = voxels()
    save(tmp_path / f"v{ending}", array, affine)
    save(tmp_path / "v.nii.gz", array, affine)
    found, geometry = read_with_geometry(str(tmp_path / f"v{ending}"))
    expected, wanted = read_with_geometry(str(tmp_path / "v.nii.gz"))
    turn = geometry.turn_onto(wanted)
    assert turn.is_identity or (ending == "" and turn.flips == (False, False, True))
    np.testing.assert_array_equal(turn.apply(found), expected)
    np.testing.assert_allclose(geometry.turned(turn).affine, wanted.affine, atol=1e-5)
    alone = read_geometry(str(tmp_path / f"v{ending}"))
    assert alone.shape == SHAPE and np.array_equal(alone.affine, geometry.affine)


@pytest.mark.parametrize(
    "ending, mask", [(".mha", None), (".nrrd", ".nii"), (".mhd", ".mha"), (".npy", None), ("", None)]
)
def test_a_set_is_read_sampled_and_scored(ending, mask, tmp_path):
    """The examples are those of the set in NIfTI, and masks are written on the grid of the source and scored there."""
    affine = OBLIQUE if ending == "" else LAS
    config = write_set(tmp_path / "set", ending, affine, mask)
    same = write_set(tmp_path / "same", ".nii.gz", np.eye(4) if ending == ".npy" else affine)
    assert agree(tmp_path / "set", "VOLUMES") == []
    assert layout_name("my_data", tmp_path / "set") == "VOLUMES"
    found = open_dataset(config, 32, "Training", need_masks=True)
    expected = open_dataset(same, 32, "Training", need_masks=True)
    assert [case.name for case in found.cases()] == ["v0", "v1"] and len(found) == len(expected)
    for index in range(len(found)):
        np.testing.assert_array_equal(found[index].image, expected[index].image)
        np.testing.assert_array_equal(found[index].mask, expected[index].mask)
    SamplingRun(open_dataset(config, 32, "Test", False), tmp_path / "out", 4, 0.5, {}).run(bright)
    written = nib.load(tmp_path / "out" / "v0_mask.nii.gz")
    np.testing.assert_allclose(written.affine, found.cases()[0].affine, atol=1e-5)
    assert written.shape == SHAPE
    assert evaluate(tmp_path / "out", list_truths(config), 0.5)["mean"]["mask"]["Dice"] > 0.6


def test_nnunet_in_another_format(tmp_path):
    for seed in (0, 1):
        image, labels = voxels(seed)
        save(tmp_path / "imagesTr" / f"c{seed}_0000.nrrd", image, OBLIQUE)
        save(tmp_path / "labelsTr" / f"c{seed}.nrrd", labels, OBLIQUE)
    text = '{"channel_names": {"0": "T2"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nrrd"}'
    (tmp_path / "dataset.json").write_text(text)
    assert agree(tmp_path, "NNUNET") == []
    assert len(open_dataset(DataConfig("NNUNET", str(tmp_path)), 32, "Training", True).cases()) == 2


@pytest.mark.parametrize("names", ["IM{:04d}", "1.3.12.2.1107.{}", "slice{}.IMA"])
def test_dicom_files_of_other_names(names, tmp_path):
    """Files without an ending, or with the last number of their identifier in its place, are DICOM by their content."""
    array, _ = voxels()
    write_series(tmp_path / "patient 7" / "T2", array, LAS, names)
    dataset = open_dataset(DataConfig("VOLUMES", str(tmp_path)), 32, "Test", need_masks=False)
    assert [case.name for case in dataset.cases()] == ["T2"] and dataset.cases()[0].shape == SHAPE


def test_a_compressed_series(tmp_path):
    """Pixels in JPEG 2000 are in items, whose bytes are no elements of DICOM."""
    array, _ = voxels()
    write_series(tmp_path / "plain", array, OBLIQUE)
    write_series(tmp_path / "packed", array, OBLIQUE, is_compressed=True)
    assert b"1.2.840.10008.1.2.4" in (tmp_path / "packed" / "slice1.dcm").read_bytes()
    np.testing.assert_array_equal(*(read_with_geometry(str(tmp_path / name))[0] for name in ("plain", "packed")))


def claim(content, length):
    """Let the pixels of a DICOM file claim a number of bytes."""
    place = content.index(b"\xe0\x7f\x10\x00") + 4  # behind the tag
    if content[place : place + 2].isalpha():
        place += 4  # the value representation and two reserved bytes
    return content[:place] + length.to_bytes(4, "little") + content[place + 4 :]


@pytest.mark.parametrize("length", [2000, 1 << 20, 0xFFFFFFF0])
def test_a_dicom_file_that_claims_more_than_it_holds(length, tmp_path):
    """Refuse it before a library allocates the memory."""
    write_set(tmp_path, "")
    path = tmp_path / "images" / "v1" / "slice2.dcm"
    path.write_bytes(claim(path.read_bytes(), length))
    [text] = agree(tmp_path, "VOLUMES")
    assert f"slice2.dcm: found an element that claims {length} bytes" in text


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".npy", ""])
def test_damaged_files(ending, tmp_path):
    """Training and the check refuse a damaged file in the same words, or both read it."""
    write_set(tmp_path, ending)
    path = tmp_path / "images" / f"v1{ending}"
    if ending == "":
        path = path / "slice2.dcm"
    found = set()
    for _, damaged in mutants(path.read_bytes(), 40, 4):
        path.write_bytes(damaged)
        with time_limit():
            found.add(bool(agree(tmp_path, "VOLUMES")))
    assert found == {True, False}


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".npy"])
def test_claims_of_enormous_sizes(ending, tmp_path):
    write_set(tmp_path, ending)
    path = tmp_path / "images" / f"v1{ending}"
    content = path.read_bytes()
    for size in (b"14 12 5", b"(14, 12, 5)"):
        content = content.replace(size, size.replace(b"5", b"5000000"))
    path.write_bytes(content)
    with time_limit():
        [text] = agree(tmp_path, "VOLUMES")
    assert f"v1{ending}: found no" in text


def test_a_folder_that_is_a_series_itself(tmp_path):
    write_series(tmp_path / "patient", voxels()[0], LAS)
    dataset = open_dataset(DataConfig("VOLUMES", str(tmp_path / "patient")), 32, "Test", need_masks=False)
    assert [case.name for case in dataset.cases()] == ["patient"] and len(dataset) == SHAPE[2]


@pytest.mark.parametrize("fault", ["a missing slice", "two series", "a broken file"])
def test_faults_of_a_series(fault, tmp_path):
    config = write_set(tmp_path, "")
    folder = tmp_path / "images" / "v1"
    if fault == "a missing slice":
        (folder / "slice3.dcm").unlink()
        words = "where the first and the last one of its series put it"
    elif fault == "two series":
        write_series(folder / "other", voxels()[0], LAS, number=2)
        for path in (folder / "other").iterdir():
            path.rename(folder / f"b{path.name}")
        (folder / "other").rmdir()
        words = "found 2 DICOM series; expected one series in a folder"
    else:
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[:150])
        words = "DICOM series"
    [text] = agree(tmp_path, "VOLUMES")
    assert words in text and "v1" in text
    with pytest.raises(UserError):
        open_dataset(config, 32, "Training", need_masks=True)


def colours():
    return np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8)


@pytest.mark.parametrize("ending", ITK_FORMATS)
@pytest.mark.parametrize("kind", ["colours", "complex", "time", "truncated", "empty"])
def test_files_that_are_no_volume(ending, kind, tmp_path):
    write_set(tmp_path, ending)
    path = tmp_path / "images" / f"v1{ending}"
    if kind == "colours":
        array = np.random.default_rng(0).integers(0, 255, (*SHAPE[::-1], 3)).astype(np.uint8)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=True), str(path))
        words = "3 numbers per voxel"
    elif kind == "complex":
        array = np.ones(SHAPE[::-1], np.complex64)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
        words = "expected one number"
    elif kind == "time":
        array = np.ones((2, *SHAPE[::-1]), np.float32)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=False), str(path))
        words = "expected a volume with three axes"
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2 if kind == "truncated" else 0])
        words = "no volume that SimpleITK reads"
    [text] = agree(tmp_path, "VOLUMES")
    assert f"v1{ending}" in text and words in text


def test_arrays_of_python_objects_are_never_loaded(tmp_path):
    """A pickle in a .npy file can run any program."""

    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harm",)

    write_set(tmp_path, ".npy")
    np.save(tmp_path / "images" / "v1.npy", np.array([Harm()], object), allow_pickle=True)
    [text] = agree(tmp_path, "VOLUMES")
    assert "v1.npy: found voxels of the type object" in text and not (tmp_path / "harm").exists()


@pytest.mark.parametrize("fault", ["cut", "empty", "text", "records", "plane"])
def test_faults_of_arrays(fault, tmp_path):
    write_set(tmp_path, ".npy")
    path = tmp_path / "images" / "v1.npy"
    content = path.read_bytes()
    words = "found no complete numpy array"
    if fault == "records":
        np.save(path, np.zeros(SHAPE, [("R", "u1"), ("G", "u1")]))
        words = "found 2 numbers per voxel (R, G)"
    elif fault == "plane":
        np.save(path, np.zeros(SHAPE[:2]))
        words = "expected a volume with three axes"
    else:
        path.write_bytes({"cut": content[:-9], "empty": b"", "text": b"not an array"}[fault])
    [text] = agree(tmp_path, "VOLUMES")
    assert "v1.npy" in text and words in text


def test_without_simple_itk(tmp_path, monkeypatch):
    """One clear error that names the extra, in training and in the check."""
    write_set(tmp_path, ".mha")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    texts = agree(tmp_path, "VOLUMES")
    assert "found no SimpleITK" in texts[0] and "extra formats" in texts[0]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", *ITK_FORMATS, ".npy", ""])
def test_one_volume_without_a_folder(ending, tmp_path):
    """Open one file by itself, as `--image` and `Model.segment` do: the examples are those of a set of it."""
    config = small_config(normalisation=ZSCORE_ALL_RULE, data_name="VOLUMES", orientation="LPS")
    image, _ = voxels()
    save(tmp_path / f"v{ending}", image, LAS)
    dataset = open_file(tmp_path / f"v{ending}", config)
    assert [case.name for case in dataset.cases()] == ["v"] and len(dataset) == SHAPE[2]
    turned = image if ending == ".npy" else image[:, ::-1]  # LAS to LPS; arrays have no place
    expected = (turned[..., 2] - image.mean()) / image.std()
    assert np.corrcoef(dataset[2].image[0, ::4, ::4].ravel(), resampled(expected)[::4, ::4].ravel())[0, 1] > 0.99


def resampled(plane):
    from guided_diffusion_core.data.formats.transforms import resize_linear

    return resize_linear(plane, (32, 32))


@pytest.mark.parametrize("name", ["v.h5", "v.png", "missing.mha"])
def test_a_file_that_the_network_was_not_trained_for(name, tmp_path):
    config = small_config(normalisation=ZSCORE_ALL_RULE, data_name="VOLUMES")
    if name != "missing.mha":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=name):
        open_file(tmp_path / name, config)
    with pytest.raises(UserError, match="a picture"):
        save(tmp_path / "v.mha", voxels()[0], LAS)
        open_file(tmp_path / "v.mha", small_config(normalisation=RGB_RULE, data_name="IMAGES"))


@pytest.mark.parametrize("ending", [".nii", ".mha", ".nrrd"])
def test_predictions_of_other_software(ending, tmp_path):
    """Score masks in any format of volumes."""
    config = write_set(tmp_path / "set", ".nii.gz")
    for seed in (0, 1):
        save(tmp_path / "out" / f"v{seed}_mask{ending}", voxels()[1], LAS)
    assert evaluate(tmp_path / "out", list_truths(config), 0.5)["mean"]["mask"]["Dice"] == 1


def test_an_array_next_to_pictures_does_not_make_them_volumes(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    np.save(tmp_path / "features.npy", np.zeros(3))
    assert layout_name("mine", tmp_path) == "IMAGES"
    (tmp_path / "images" / "a.png").unlink()
    assert layout_name("mine", tmp_path) == "VOLUMES"

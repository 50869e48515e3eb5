"""Test the BraTS layout: cases of five volumes, their slices, and every input that it refuses."""

import gzip
import itertools
import pickle
import shutil

import nibabel as nib
import numpy as np
import pytest

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths, open_dataset, phantoms, volume_cases
from guided_diffusion_core.data.layouts import brats
from guided_diffusion_core.errors import UserError


def brats_config(folder, **settings):
    return DataConfig(data_name="BRATS", data_dir=str(folder), **settings)


@pytest.fixture
def brats_folder(tmp_path):
    for seed, name in enumerate(("BraTS2021_00001", "BraTS20_Training_002")):
        phantoms.write_brats_phantom(tmp_path / "brats", name, (20, 24, 10 + seed), seed)
    return tmp_path / "brats"


def test_cases_and_channels(brats_folder):
    dataset = open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)
    first, second = dataset.cases()
    assert (first.name, first.shape) == ("BraTS2021_00001", (20, 24, 10))
    assert (second.name, second.shape) == ("BraTS20_Training_002", (20, 24, 11))
    assert first.indices + second.indices == tuple(range(21)) and first.slices == tuple(range(10))
    example = dataset[first.indices[5]]
    assert example.image.shape == (4, 32, 32) and example.mask.shape == (1, 32, 32)
    assert example.noise_key == "BraTS2021_00001/5" and set(np.unique(example.mask)) == {0, 1}
    # the phantom's tumour gets brighter from channel to channel: dark in t1, brightest in flair
    inside = example.image[:, example.mask[0] > 0].mean(axis=1)
    assert list(np.argsort(inside)) == [0, 1, 2, 3]


def test_label_free(brats_folder):
    for path in brats_folder.rglob("*_seg.nii.gz"):
        path.unlink()
    dataset = open_dataset(brats_config(brats_folder), 32, "Test", need_masks=False)
    assert len(dataset) == 21 and dataset[5].mask is None
    with pytest.raises(UserError, match="BraTS2021_00001.*seg missing"):
        open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)
    with pytest.raises(UserError, match="--slices tumour"):
        open_dataset(brats_config(brats_folder, slices="tumour"), 32, "Test", need_masks=False)


def test_tolerant_names(brats_folder, tmp_path):
    source = brats_folder / "BraTS2021_00001"
    for path in source.iterdir():
        modality = path.name.split("_")[-1].split(".")[0]
        content = gzip.decompress(path.read_bytes())
        (tmp_path / "flat").mkdir(exist_ok=True)
        # not compressed, all files in one folder
        (tmp_path / "flat" / f"Case_A_{modality.upper()}.nii").write_bytes(content)
        (tmp_path / "flat" / "sub").mkdir(exist_ok=True)
        (tmp_path / "flat" / "sub" / f"{modality}.nii").write_bytes(content)  # the name is only the modality
    dataset = open_dataset(brats_config(tmp_path / "flat"), 32, "Training", need_masks=True)
    assert [case.name for case in dataset.cases()] == ["Case_A", "sub"]
    np.testing.assert_array_equal(dataset[5].image, dataset[15].image)


def test_missing_modality(brats_folder):
    (brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t2.nii.gz").rename(
        brats_folder / "BraTS2021_00001" / "W39_Segm.nii.gz"
    )
    expected = "BraTS2021_00001.*only flair, seg, t1, t1ce .*W39_Segm.*; t2 missing"
    with pytest.raises(UserError, match=expected):
        open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)


@pytest.mark.parametrize("part, change", list(itertools.product(("seg", "t1ce"), ("shape", "affine"))))
def test_geometry_that_disagrees(brats_folder, part, change):
    path = brats_folder / "BraTS2021_00001" / f"BraTS2021_00001_{part}.nii.gz"
    image = nib.load(path)
    values = np.asarray(image.dataobj)
    affine = image.affine
    if change == "shape":
        values = values[:, :, :-1]
    else:
        affine = affine @ np.diag([1, 1, 2, 1])
    nib.save(nib.Nifti1Image(values, affine), path)
    with pytest.raises(UserError, match=f"_{part}.nii.gz: found {change}"):
        open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.004, 0.5, 0.999])
def test_truncated_volume(brats_folder, compressed, kept):
    path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_flair.nii.gz"
    content = path.read_bytes()
    if not compressed:
        path.unlink()
        path = path.with_suffix("")
        content = gzip.decompress(content)
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match="_flair.nii.*no complete NIfTI"):
        open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)


def test_corrupt_volume(brats_folder):
    path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    dataset = open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)
    with pytest.raises(UserError, match="_t1.nii.gz.*no complete NIfTI"):
        dataset[0]


def test_text_named_as_a_volume(brats_folder):
    path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    path.write_text("not a volume " * 100)
    with pytest.raises(UserError, match="_t1.nii.gz"):
        open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)


def test_several_gzip_members_are_no_damage(brats_folder):
    path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    assert len(open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)) == 21


def test_array_of_four_axes(brats_folder):
    path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), path)
    with pytest.raises(UserError, match=r"shape \(4, 4, 4, 2\)"):
        open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)


def test_two_files_of_one_modality(brats_folder):
    path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    with pytest.raises(UserError, match="BraTS2021_00001, t1: "):
        open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)


def test_names_used_twice(brats_folder):
    shutil.copytree(brats_folder / "BraTS2021_00001", brats_folder / "copy")
    with pytest.raises(UserError, match="BraTS2021_00001: "):
        open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)


def test_no_slice_left(brats_folder):
    for lister in (lambda config: open_dataset(config, 32, "Training", True), list_truths):
        with pytest.raises(UserError, match="--slices '0:1,tumour'"):
            lister(brats_config(brats_folder, slices="0:1,tumour"))


def test_volume_is_read_once_and_the_cache_is_bounded(brats_folder, monkeypatch):
    reads = []
    original = volume_cases.read_volume
    monkeypatch.setattr(volume_cases, "read_volume", lambda path: reads.append(path) or original(path))
    dataset = open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)
    for index in range(len(dataset)):
        dataset[index]
    assert len(reads) == len(set(reads)) == 10
    cases = brats.find_cases(brats_folder, "Training")
    label_map = brats.REGIONS.select("", brats.DEFAULT_LABELS)
    # a cache of one byte keeps one volume at a time
    small = volume_cases.VolumeDataset(cases, brats.PARTS, label_map, 32, "all", True, False, brats_folder, 1)
    first = small[0].image
    last = small[len(small) - 1]
    np.testing.assert_array_equal(first, small[0].image)
    assert last.case != small[0].case and len(reads) == 10 + 3 * 5


def test_copy_for_another_process(brats_folder):
    dataset = open_dataset(brats_config(brats_folder, slices="tumour"), 32, "Training", need_masks=True)
    content_before = len(pickle.dumps(dataset))
    expected = dataset[0]
    assert len(pickle.dumps(dataset)) == content_before  # the cache is not part of the copy
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[0].image, expected.image)
    np.testing.assert_array_equal(copy[0].mask, expected.mask)


def test_truths_need_no_images(brats_folder):
    for path in brats_folder.rglob("*_t*.nii.gz"):
        path.unlink()
    truths = list_truths(brats_config(brats_folder, slices="even"))
    assert [truth.slices for truth in truths] == [(0, 2, 4, 6, 8), (0, 2, 4, 6, 8, 10)]
    with pytest.raises(UserError, match="missing"):
        list_truths(brats_config(brats_folder, slices="brain"))

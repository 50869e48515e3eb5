"""Test `medsegdiff check-data`: it finds and names every fault that is planted in a data set, and no other."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_files
from guided_diffusion_core.data.check.checking import Check
from guided_diffusion_core.data.check.inventory import take_inventory
from guided_diffusion_core.data.phantoms import (
    write_brats_phantom,
    write_brats_slices_phantom,
    write_ddti_phantoms,
    write_image_phantoms,
    write_isic_phantoms,
    write_nnunet_phantoms,
    write_refuge2_phantoms,
    write_volume_phantoms,
)
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system import files

SHAPE = (20, 18, 10)


def check(train, test=None, data_name="ISIC", **settings):
    def inventory(folder, split, need_masks):
        config = DataConfig(data_name, str(folder), **settings)
        return take_inventory(lambda: list_files(config, split, need_masks))

    sets = {"train": inventory(train, "Training", True)}
    if test:
        sets["test"] = inventory(test, "Test", False)
    return Check(sets, workers=2)


def found(result):
    """Return (severity, kind, file name) of each problem."""
    return [(problem.severity, problem.kind, Path(problem.file).name) for problem in result.problems]


@pytest.fixture
def isic(tmp_path):
    """Write a training set of four pictures and a test set of two; return their folders."""
    return [Path(folder) for folder in write_isic_phantoms(tmp_path, 4, 2, 48, seed=1)]


@pytest.fixture
def brats(tmp_path):
    """Write the cases A and B; return their folder."""
    for seed, name in enumerate("AB"):
        write_brats_phantom(tmp_path, name, SHAPE, seed)
    return tmp_path


def picture(folder, number):
    return next(folder.glob(f"*_Data/ISIC_{number:07d}.jpg"))


def mask(folder, number):
    return next(folder.glob(f"*_GroundTruth/ISIC_{number:07d}_Segmentation.png"))


def rewrite(path, change, affine=None, dtype=None):
    """Change the voxels and the affine of a volume."""
    image = nib.load(path)
    values = change(np.asarray(image.dataobj).astype(dtype or image.get_data_dtype()))
    nib.save(nib.Nifti1Image(values, image.affine if affine is None else affine), path)


def test_whole_sets_have_no_problem(isic, brats):
    assert found(check(*isic)) == []
    assert found(check(brats, data_name="BRATS")) == []


# layout -> function that writes a data set, and a pattern for the file that the test deletes
OTHER_LAYOUTS = {
    "BRATS_SLICES": (lambda folder: write_brats_slices_phantom(folder, "brats_train_001", SHAPE, 1), "*t1ce_005*"),
    "REFUGE2": (lambda folder: write_refuge2_phantoms(folder, 2, 64, 1), "*Masks/*"),
    "DDTI": (lambda folder: write_ddti_phantoms(folder, 2, 48, 1), "masks/*"),
    "IMAGES": (lambda folder: write_image_phantoms(folder, 2, 48, 1, labelled=True), "images/*"),
    "VOLUMES": (lambda folder: write_volume_phantoms(folder, 2, SHAPE, 1), "masks/*"),
    "NNUNET": (lambda folder: write_nnunet_phantoms(folder, 2, 1, SHAPE, 1), "imagesTr/*_0001*"),
}


@pytest.mark.parametrize("name", OTHER_LAYOUTS)
def test_every_layout(name, tmp_path):
    """Find no problem in a complete set except empty masks; find a missing file and a broken file in one run."""
    write, pattern = OTHER_LAYOUTS[name]
    write(tmp_path)
    result = check(tmp_path, data_name=name)
    assert {kind for _, kind, _ in found(result)} <= {"empty mask"}
    files_of_set = [each.file for each in result.examined["train"]]
    assert any(file.label_map for file in files_of_set) and all(Path(file.path).is_file() for file in files_of_set)
    next(path for path in sorted(tmp_path.rglob("*")) if path.match(pattern)).unlink()
    broken = next(Path(file.path) for file in reversed(files_of_set) if Path(file.path).exists() and file.label_map)
    broken.write_bytes(broken.read_bytes()[:40])
    errors = [problem[1:] for problem in found(check(tmp_path, data_name=name)) if problem[0] == "error"]
    assert ("unreadable", broken.name) in errors and sorted(kind for kind, _ in errors) == ["layout", "unreadable"]


@pytest.mark.parametrize(
    "name, folder", [("BRATS", "BraTS2021/Train"), ("REFUGE2", "REFUGE2/Train"), ("DDTI", "DDTI/Train")]
)
def test_real_data(shared_data, name, folder):
    result = check(shared_data / folder, data_name=name)
    assert found(result) == [] and len(result.examined["train"]) >= 2


def test_all_problems_of_pictures_at_once(isic):
    train, test = isic
    picture(train, 0).write_bytes(picture(train, 0).read_bytes()[:400])
    Image.open(mask(train, 1)).resize((20, 20), Image.Resampling.NEAREST).save(mask(train, 1))
    Image.new("L", Image.open(picture(train, 2)).size).save(mask(train, 2))
    mask(train, 3).unlink()
    Image.open(picture(train, 3)).save(picture(test, 4), quality=95, subsampling="keep", qtables="keep")
    mask(test, 4).unlink()
    mask(test, 5).write_bytes(b"")
    result = check(train, test)
    assert sorted(found(result)) == sorted(
        [
            ("error", "unreadable", "ISIC_0000000.jpg"),
            ("error", "shape", "ISIC_0000001_Segmentation.png"),
            ("error", "layout", "ISIC_0000003.jpg"),
            ("warning", "empty mask", "ISIC_0000002_Segmentation.png"),
            ("error", "unreadable", "ISIC_0000005_Segmentation.png"),
            ("warning", "no labels", "test set"),
            *([("error", "duplicate", "ISIC_0000004.jpg")] if same_pixels(picture(train, 3), picture(test, 4)) else []),
        ]
    )
    assert [severity for severity, _, _ in found(result)] == sorted(severity for severity, _, _ in found(result))
    for problem in result.problems:
        assert problem.file and problem.found and problem.expected and problem.mend
        assert str(problem).startswith(f"{problem.file}: found {problem.found}; expected ")


def same_pixels(*paths):
    first, second = (np.asarray(Image.open(path)) for path in paths)
    return first.shape == second.shape and (first == second).all()


def test_a_copy_in_another_format_is_a_duplicate(isic):
    train, test = isic
    copy = picture(test, 4).with_suffix(".png")
    Image.open(picture(train, 3)).save(copy)
    picture(test, 4).unlink()
    shutil.copy(mask(train, 3), mask(test, 4))
    result = check(train, test)
    assert found(result) == [("error", "duplicate", "ISIC_0000004.png")]
    assert result.problems[0].found == f"the same values as in {picture(train, 3)}"
    shutil.copy(copy, train / "ISBI2016_ISIC_Part1_Training_Data" / "ISIC_0000009.png")
    shutil.copy(mask(train, 3), str(mask(train, 3)).replace("0003", "0009"))
    assert found(check(train)) == [("warning", "duplicate", "ISIC_0000009.png")]


def test_names_and_faults_of_single_pictures(isic):
    train, test = isic
    shutil.copy(picture(train, 0), picture(train, 0).with_suffix(".jpeg"))
    data = picture(test, 4).parent
    truth = mask(test, 4).parent
    picture(test, 4).rename(data / "ISIC_0000001.jpg")
    mask(test, 4).rename(truth / "ISIC_0000001_Segmentation.png")
    upright = Image.open(picture(train, 2))
    exif = upright.getexif()
    exif[274] = 3
    upright.save(picture(train, 2), exif=exif)
    grey = np.asarray(Image.open(mask(train, 1))).copy()
    grey[0, :3] = 7, 140, 9
    Image.fromarray(grey).save(mask(train, 1))
    Image.fromarray(np.asarray(Image.open(mask(train, 3))) // 255).save(mask(train, 3))
    Image.new("RGB", Image.open(picture(test, 5)).size, (9, 9, 9)).save(picture(test, 5))
    assert sorted(found(check(train, test))) == sorted(
        [
            ("error", "layout", "ISIC_0000000.jpg"),
            ("error", "duplicate", "ISIC_0000000.jpg"),
            ("warning", "name", "ISIC_0000001.jpg"),
            ("warning", "orientation", "ISIC_0000002.jpg"),
            ("warning", "grey mask", "ISIC_0000001_Segmentation.png"),
            ("error", "labels", "ISIC_0000003_Segmentation.png"),
            ("warning", "constant", "ISIC_0000005.jpg"),
        ]
    )


def test_csv_with_several_wrong_rows(isic):
    train, _ = isic
    table = train / "X_Training_GroundTruth.csv"
    images = [picture(train, number).relative_to(train) for number in (0, 1)]
    rows = [
        f"{images[0]},{mask(train, 0).relative_to(train)}",
        "gone.jpg,x.png",
        ",",
        "notes.txt,",
        f"{images[1]},gone.png",
    ]
    table.write_text("\n".join(["img,seg", *rows]))
    result = check(train)
    assert found(result) == [("error", "layout", table.name)] * 3 + [("error", "layout", images[1].name)]
    with pytest.raises(UserError, match="gone.jpg, which does not exist"):
        list_files(DataConfig("ISIC", str(train)), "Training", True)


def test_all_problems_of_volumes_at_once(brats):
    a = brats / "A"
    b = brats / "B"
    affine = nib.load(a / "A_t1.nii.gz").affine
    moved = affine.copy()
    stretched = affine.copy()
    moved[0, 3] += 1
    stretched[1, 1] *= 2
    rewrite(a / "A_t2.nii.gz", lambda values: values, moved)
    rewrite(a / "A_t1ce.nii.gz", lambda values: values, stretched)
    rewrite(a / "A_flair.nii.gz", lambda values: np.where(values > 500, np.nan, values), dtype=np.float32)
    rewrite(a / "A_seg.nii.gz", lambda values: np.where(values == 4, 7, values))
    rewrite(b / "B_t1.nii.gz", lambda values: values - 30)
    rewrite(b / "B_t1ce.nii.gz", lambda values: values[:, :, :-1])
    (b / "B_t2.nii.gz").unlink()
    rewrite(b / "B_flair.nii.gz", lambda values: values * 0 + 5)
    rewrite(b / "B_seg.nii.gz", lambda values: values * 0)
    assert sorted(found(check(brats, data_name="BRATS"))) == sorted(
        [
            ("error", "affine", "A_t2.nii.gz"),
            ("error", "spacing", "A_t1ce.nii.gz"),
            ("error", "not finite", "A_flair.nii.gz"),
            ("warning", "labels", "A_seg.nii.gz"),
            ("warning", "negative", "B_t1.nii.gz"),
            ("error", "shape", "B_t1ce.nii.gz"),
            ("error", "layout", "B"),
            ("warning", "constant", "B_flair.nii.gz"),
            ("warning", "empty mask", "B_seg.nii.gz"),
        ]
    )


def test_the_same_file_for_two_modalities(brats):
    content = gzip.decompress((brats / "A" / "A_t1.nii.gz").read_bytes())
    (brats / "A" / "A_t1ce.nii.gz").write_bytes(gzip.compress(content, 1))
    assert found(check(brats, data_name="BRATS")) == [("error", "duplicate", "A_t1ce.nii.gz")]


def test_each_file_is_read_once(brats, isic, monkeypatch):
    read = []
    plain = files.bf.read_bytes
    monkeypatch.setattr(files.bf, "read_bytes", lambda path: read.append(path) or plain(path))
    for sets in ({"train": brats, "data_name": "BRATS"}, {"train": isic[0], "test": isic[1]}):
        result = check(**sets)
        paths = [each.file.path for results in result.examined.values() for each in results]
        assert sorted(read) == sorted(paths) and len(paths) >= 10
        read.clear()


def test_fingerprint(brats, isic):
    volumes = check(brats, data_name="BRATS").fingerprint()["train"]
    assert volumes["sizes"] == [list(SHAPE)] * 2 and volumes["spacings"] == [[1, 1, 1]] * 2
    stored = [np.asarray(nib.load(brats / name / f"{name}_t2.nii.gz").dataobj) for name in "AB"]
    brain = np.concatenate([values[values > 0] for values in stored]).astype(float)
    t2 = volumes["intensities"]["t2"]
    assert t2["mean"] == pytest.approx(brain.mean()) and t2["standard_deviation"] == pytest.approx(brain.std())
    assert (t2["minimum"], t2["maximum"]) == (0, max(values.max() for values in stored))
    assert t2["quantiles"]["50"] == pytest.approx(np.median(brain), rel=0.02)
    tumour = [float((np.asarray(nib.load(brats / name / f"{name}_seg.nii.gz").dataobj) > 0).mean()) for name in "AB"]
    assert volumes["foreground_share"]["whole_tumour"]["cases"] == pytest.approx(tumour)
    pictures = check(*isic).fingerprint()
    assert pictures["test"]["cases"] == 2 and pictures["train"]["spacings"] == []
    assert all(row[0] == 48 for row in pictures["train"]["sizes"])


def test_command(isic, command, tmp_path):
    train, test = isic
    flags = ("--data_name", "ISIC", "--data_dir", train, "--test_dir", test)
    code, out, _ = command("check_data", *flags, "--out_dir", tmp_path / "out")
    assert code == 0 and "12 files checked: no errors" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "fingerprint.json",
        "fingerprint.png",
        "problems.json",
    ]
    assert Image.open(tmp_path / "out" / "fingerprint.png").size[0] > 500
    mask(train, 0).write_bytes(b"not a picture")
    Image.new("L", Image.open(picture(train, 1)).size).save(mask(train, 1))
    code, out, errors = command("check_data", *flags, "--out_dir", tmp_path / "out")
    assert code == 1 and "Traceback" not in errors
    lines = out.splitlines()
    assert lines[0].startswith(f"error   {mask(train, 0)}: found no complete image")
    assert lines[1].startswith(f"warning {mask(train, 1)}: found no pixel of 'mask'")
    report = json.loads((tmp_path / "out" / "problems.json").read_text())
    assert report["counts"] == [
        {"severity": "error", "kind": "unreadable", "problems": 1},
        {"severity": "warning", "kind": "empty mask", "problems": 1},
    ]
    assert set(report["problems"][0]) == {"severity", "kind", "file", "found", "expected", "mend"}
    mask(train, 0).unlink()
    mask(train, 1).unlink()
    code, out, errors = command("check_data", "--data_name", "ISIC", "--data_dir", tmp_path / "nowhere")
    assert code == 2 and "no such folder" in errors and out == ""


def test_folders_named_val_are_checked_too(tmp_path, command):
    """Find a case of the training set in the validation set, whose masks may be missing."""
    for split, seed in (("train", 1), ("val", 2), ("test", 3)):
        write_image_phantoms(tmp_path / split, 2, 32, seed)
    copied = tmp_path / "train" / "images" / "case001.png"
    shutil.copy(copied, tmp_path / "val" / "images" / "copy.png")
    code, out, errors = command("check_data", "--data_dir", tmp_path, "--out_dir", tmp_path / "out")
    assert code == 1 and "Traceback" not in errors
    assert f"copy.png: found the same values as in {copied}" in out
    assert "val set: found 1 cases without labels (copy)" in out
    assert "the case name 'case000' in both sets, train and val" in out
    assert "train set, left out: 1 folder named test (test)" in out
    report = json.loads((tmp_path / "out" / "problems.json").read_text())
    assert report["files"] == {"train": 4, "val": 5}
    assert report["left_out"]["train"] == {"folder named test": ["test"]}

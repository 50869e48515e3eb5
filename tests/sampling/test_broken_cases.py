"""Test that a case whose files cannot be used does not stop the others, in sampling and in scoring."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import open_dataset, phantoms
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.sampling.run import SamplingRun

SHAPE = (24, 20, 4)
NAMES = ("A", "B", "C")


def bright(images, keys):
    """Sample without a network: what is bright in the first channel, by one member."""
    return (images[None, :, :1] > 0.5).astype(np.float32)


def write(folder):
    for seed, name in enumerate(NAMES):
        phantoms.write_brats_phantom(folder, name, SHAPE, seed)
    return DataConfig("BRATS", str(folder))


def spoil(path, value=np.inf, number=1):
    image = nib.load(path)
    values = image.get_fdata().astype(np.float32)
    values.flat[1000 : 1000 + number] = value
    nib.save(nib.Nifti1Image(values, image.affine), path)


def sample(config, out_dir, batch_size=3, **more):
    dataset = open_dataset(config, 32, "Test", need_masks=False)
    SamplingRun(dataset, out_dir, batch_size, 0.5, {"data": {"slices": "all"}}, **more).run(bright)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("run_report")}


@pytest.mark.parametrize("broken, value, number", [(("B",), np.inf, 1), (("A",), np.nan, 7), (("B", "C"), -np.inf, 2)])
def test_the_other_cases_are_sampled(broken, value, number, tmp_path):
    """Name the files and count the voxels, after the masks of the other cases are written, the same to the bit."""
    config = write(tmp_path / "brats")
    sample(config, tmp_path / "whole", batch_size=4)
    for name in broken:
        spoil(tmp_path / "brats" / name / f"{name}_t2.nii.gz", value, number)
    with pytest.raises(UserError) as error:
        sample(config, tmp_path / "out", batch_size=4)
    for name in broken:
        assert f"{name}_t2.nii.gz: found {number} values that are not finite" in str(error.value)
    assert f"{len(broken)} of 3 cases were left out ({', '.join(broken)})" in str(error.value)
    kept = {name: content for name, content in contents(tmp_path / "whole").items() if name[0] not in broken}
    assert contents(tmp_path / "out") == kept
    report = json.loads((tmp_path / "out" / "run_report.json").read_text())
    assert report["finished"] is False and report["cases_left_out"] == len(broken)


def test_mended_files_are_sampled_by_continue(tmp_path):
    config = write(tmp_path / "brats")
    sample(config, tmp_path / "whole")
    path = tmp_path / "brats" / "B" / "B_t1.nii.gz"
    right = path.read_bytes()
    spoil(path)
    with pytest.raises(UserError, match="--continue samples the rest"):
        sample(config, tmp_path / "out")
    path.write_bytes(right)
    sample(config, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "out" / "run_report.json").read_text())["finished"] is True


def test_a_single_case_gives_its_own_error(tmp_path):
    phantoms.write_brats_phantom(tmp_path / "brats", "A", SHAPE, 0)
    spoil(tmp_path / "brats" / "A" / "A_flair.nii.gz")
    with pytest.raises(UserError, match=r"^[^\n]*A_flair.nii.gz: found 1 values that are not finite[^\n]*$"):
        sample(DataConfig("BRATS", str(tmp_path / "brats")), tmp_path / "out")


def test_pictures(tmp_path):
    """A picture that breaks after the set was opened is left out as well."""
    phantoms.write_image_phantoms(tmp_path / "data", 3, 40, 1)
    dataset = open_dataset(DataConfig("IMAGES", str(tmp_path / "data")), 32, "Test", need_masks=False)
    broken = tmp_path / "data" / "images" / "case001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match="case001.png: found(.|\n)*1 of 3 cases were left out"):
        SamplingRun(dataset, tmp_path / "out", 2, 0.5, {}).run(bright)
    assert sorted(path.name for path in (tmp_path / "out").glob("*_mask.png")) == [
        "case000_mask.png",
        "case002_mask.png",
    ]


@pytest.mark.parametrize("fault", ["NaN in the truth", "unknown label", "another grid", "broken prediction"])
def test_the_other_cases_are_scored(fault, tmp_path, command):
    """Write the scores of the others, list what is wrong, and end with the code of wrong input."""
    config = write(tmp_path / "brats")
    sample(config, tmp_path / "out")
    labels = tmp_path / "brats" / "B" / "B_seg.nii.gz"
    prediction = tmp_path / "out" / "B_probability.nii.gz"
    if fault == "NaN in the truth":
        spoil(labels, np.nan)
    elif fault == "unknown label":
        spoil(labels, 0.3)
    elif fault == "another grid":
        image = nib.load(prediction)
        nib.save(
            nib.Nifti1Image(image.get_fdata(), image.affine @ nib.affines.from_matvec(np.eye(3), [9, 0, 0])), prediction
        )
    else:
        prediction.write_bytes(prediction.read_bytes()[:-9])
    code, out, errors = command(
        "segmentation_env", "--inp_pth", tmp_path / "out", "--data_name", "BRATS", "--data_dir", tmp_path / "brats"
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert code == 2 and "1 cases could not be scored" in errors and "Traceback" not in errors
    assert ("B_probability" if fault in ("another grid", "broken prediction") else "B_seg") in errors
    assert [row["case"] for row in summary["metric_per_case"]] == ["A", "C"] and summary["left_out"] == ["B"]
    assert summary["n_cases"] == 2 and (tmp_path / "out" / "report.html").is_file()


def test_no_case_can_be_scored(tmp_path, command):
    config = write(tmp_path / "brats")
    sample(config, tmp_path / "out")
    for name in NAMES:
        spoil(tmp_path / "brats" / name / f"{name}_seg.nii.gz", np.inf)
    code, _, errors = command(
        "segmentation_env", "--inp_pth", tmp_path / "out", "--data_name", "BRATS", "--data_dir", tmp_path / "brats"
    )
    assert code == 2 and "A_seg.nii.gz: found label values inf" in errors
    assert not (tmp_path / "out" / "summary.json").exists()


def test_the_mask_of_a_picture_has_its_size(tmp_path):
    """The masks that are written although another picture is broken are whole."""
    phantoms.write_image_phantoms(tmp_path / "data", 2, 40, 1)
    dataset = open_dataset(DataConfig("IMAGES", str(tmp_path / "data")), 32, "Test", need_masks=False)
    (tmp_path / "data" / "images" / "case000.png").write_bytes(b"")
    with pytest.raises(UserError):
        SamplingRun(dataset, tmp_path / "out", 2, 0.5, {}).run(bright)
    [mask] = (tmp_path / "out").glob("*_mask.png")
    assert Image.open(mask).size == Image.open(tmp_path / "data" / "images" / "case001.png").size

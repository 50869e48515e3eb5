"""Test the scores of volumes whose predictions are stored in other ways than the truth."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from guided_diffusion_core import evaluation
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.evaluation.pictures import ImageSource
from guided_diffusion_core.evaluation.report import write_report

SHAPE = (24, 20, 6)
AFFINE = nib.affines.from_matvec(np.diag([-1.0, -1.2, 3]), [23, 19, -4])
CASES = ("v0", "v1")


def box(shift=0):
    """Return a box that no change of axes maps to itself."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3 + shift : 9 + shift, 4:10, 1:4] = 1
    labels[3:5, 4:6, 4] = 1
    return labels


def save(path, values, affine=AFFINE, code="LPS"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    target = nib.orientations.axcodes2ornt(code)
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), target)), path)


@pytest.fixture
def data(tmp_path):
    for case in CASES:
        values = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32) + 100 * box()
        save(tmp_path / "data" / "images" / f"{case}.nii.gz", values)
        save(tmp_path / "data" / "masks" / f"{case}.nii.gz", box())
    return tmp_path / "data"


def predict(folder, code="LPS", affine=AFFINE, shift=1, kinds=("mask",)):
    """Write predictions in an orientation, which are the truth moved by some voxels."""
    for case in CASES:
        for kind in kinds:
            values = box(shift) if kind == "mask" else box(shift).astype(np.float32) * np.float32(0.75)
            save(folder / f"{case}_{kind}.nii.gz", values, affine, code)
    return folder


def scores(folder, data, **settings):
    """Return the summary without the names of files."""
    truths = list_truths(DataConfig("VOLUMES", str(data), **settings))
    summary = evaluation.evaluate(folder, truths, 0.5, evaluation.Surfaces())
    for row in summary["metric_per_case"]:
        del row["prediction_file"]
    return summary


@pytest.mark.parametrize("code", ["RAS", "LAI", "PIR", "SLA"])
def test_another_order_of_axes_changes_no_score(code, data, tmp_path):
    """Compare all scores, of slices and surfaces too, for masks and for probabilities."""
    for kinds in (("mask",), ("probability", "uncertainty")):
        expected = scores(predict(tmp_path / "same" / kinds[0], kinds=kinds), data)
        assert scores(predict(tmp_path / "turned" / kinds[0], code, kinds=kinds), data) == expected
        assert 0.5 < expected["mean"]["mask"]["Dice"] < 0.95


@pytest.mark.parametrize(
    "change",
    [
        nib.affines.from_matvec(np.eye(3), [0, 0, 50]),
        nib.affines.from_matvec(np.eye(3), [0.5, 0, 0]),
        np.diag([1, 1, 1.1, 1]),
        np.diag([-1, 1, 1, 1.0]),
    ],
)
def test_other_points_are_refused(change, data, tmp_path):
    """Refuse predictions whose voxels lie elsewhere, with both affines and a way to mend them."""
    predict(tmp_path / "far", affine=change @ AFFINE)
    with pytest.raises(UserError) as error:
        scores(tmp_path / "far", data)
    text = str(error.value)
    assert "v0_mask.nii.gz: found affine [[" in text and "masks/v0.nii.gz" in text
    assert text.count("affine [[") == 2 and "resample it" in text


@pytest.mark.parametrize("placed", [True, False])
def test_predictions_without_a_place_are_scored_as_stored_and_named(placed, data, tmp_path):
    """The identity, or no transform at all, says nothing about the place: the voxels are taken in their order."""
    expected = scores(predict(tmp_path / "same"), data)
    for case in CASES:
        image = nib.Nifti1Image(box(1), np.eye(4) if placed else None)
        (tmp_path / "out").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "out" / f"{case}_mask.nii.gz")
    found = scores(tmp_path / "out", data)
    assert found["mean"] == expected["mean"]
    assert "2 cases: the prediction has no place in space" in evaluation.format_table(found)
    assert "no place" not in evaluation.format_table(expected)


def test_a_header_whose_two_transforms_disagree(data, tmp_path):
    """Take the sform where both are set, as nibabel does, and the qform where the sform's code is 0."""
    far = AFFINE.copy()
    far[:3, 3] += 40
    for name, codes in (("sform", (2, 1)), ("qform", (0, 1))):
        for case in CASES:
            image = nib.Nifti1Image(box(1), AFFINE)
            image.header.set_sform(AFFINE if name == "sform" else far, codes[0])
            image.header.set_qform(far if name == "sform" else AFFINE, codes[1])
            path = tmp_path / name / f"{case}_mask.nii.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(nib.Nifti1Image(box(1), None, image.header).to_bytes())
        assert scores(tmp_path / name, data)["mean"]["mask"]["Dice"] > 0.5


def test_scores_in_another_orientation_count_other_slices(data, tmp_path):
    """Score along the axis that the network has seen: the whole is the same, slices are those of that axis."""
    predict(tmp_path / "out", "RAS")
    stored = scores(tmp_path / "out", data)
    turned = scores(tmp_path / "out", data, orientation="SAR")
    first = stored["metric_per_case"][0]
    second = turned["metric_per_case"][0]
    assert (first["orientation"], second["orientation"]) == ("LPS", "SAR")
    assert len(first["slices"]) == SHAPE[2] and len(second["slices"]) == SHAPE[0]
    for name in ("Dice", "TP", "FP", "FN", "HD95"):
        assert stored["mean"]["mask"][name] == pytest.approx(turned["mean"]["mask"][name])
    counts = np.sum([second["per_slice"]["mask"][name] for name in ("TP", "FN")], axis=0)
    np.testing.assert_array_equal(counts, box().sum(axis=(1, 2))[::-1])  # L to R


def test_comparison_of_two_runs_in_different_orientations(data, tmp_path):
    """Compare masks voxel by voxel on one grid, with and without the truth; refuse those that lie elsewhere."""
    config = DataConfig("VOLUMES", str(data))
    truths = list_truths(config)
    runs = []
    for name, code in (("a", "LPS"), ("b", "ASR")):
        folder = predict(tmp_path / name, code)
        runs.append(evaluation.Run(name, folder, evaluation.evaluate(folder, truths, 0.5)))
    for first, second in (runs, runs[::-1]):
        result = evaluation.compare(first, second)
        assert [row["mask_dice"] for row in result["masks"]["mask"]] == [1.0, 1.0]
        assert result["scores"]["mask"]["Dice"]["largest"] == 0
    far = AFFINE.copy()
    far[0, 3] += 2
    elsewhere = dataclasses.replace(runs[1], folder=predict(tmp_path / "far", affine=far))
    with pytest.raises(UserError, match="v0_mask.nii.gz: found affine"):
        evaluation.compare(runs[0], elsewhere)


def test_pictures_of_turned_volumes_are_those_of_the_same_volumes(data, tmp_path):
    """The report shows the same pictures, whichever way the predictions are stored."""
    config = DataConfig("VOLUMES", str(data))
    truths = list_truths(config)
    pages = []
    for name, code in (("a", "LPS"), ("b", "PSR")):
        folder = predict(tmp_path / name, code)
        summary = evaluation.evaluate(folder, truths, 0.5)
        write_report(tmp_path / f"{name}.html", summary, folder, truths, ImageSource(config), 2)
        pages.append((tmp_path / f"{name}.html").read_text().replace(str(folder), ""))
    assert pages[0] == pages[1] and pages[0].count("data:image/png") >= 2


@pytest.mark.parametrize("sampled, given", [("odd", "all"), ("1:4", "odd"), ("all", "even"), ("tumour", "tumour")])
def test_only_sampled_slices_are_scored(sampled, given, data, tmp_path, command):
    """Read from the run's report which slices were sampled: the others are empty in the masks."""
    folder = predict(tmp_path / "out", shift=0)
    report = {"data": {"slices": sampled, "orientation": "stored"}}
    (folder / "run_report.json").write_text(json.dumps(report))
    flags = ("segmentation_env", "--inp_pth", folder, "--data_name", "VOLUMES", "--data_dir", data)
    code, out, errors = command(*flags, *(() if given == "all" else ("--slices", given)))
    summary = json.loads((folder / "summary.json").read_text())
    both = {truth.slices for truth in list_truths(DataConfig("VOLUMES", str(data), slices=f"{sampled},{given}"))}
    assert code == 0, errors
    assert [tuple(row["slices"]) for row in summary["metric_per_case"]] == [*both, *both]
    assert ("only the sampled slices" in out) == (sampled not in ("all", given))


@pytest.mark.parametrize("kind", ["fractions", "NaN", "whole numbers as floats"])
def test_masks_of_predictions_follow_the_rule_of_masks(kind, data, tmp_path):
    values = box().astype(np.float32)
    if kind == "fractions":
        values *= np.float32(0.6)
    elif kind == "NaN":
        values[0, 0, 0] = np.nan
    else:
        values *= 255
    for case in CASES:
        save(tmp_path / "out" / f"{case}_mask.nii.gz", values)
    if kind == "whole numbers as floats":
        assert scores(tmp_path / "out", data)["mean"]["mask"]["Dice"] == 1
        return
    with pytest.raises(UserError, match="v0_mask.nii.gz: found label values"):
        scores(tmp_path / "out", data)
    if kind == "fractions":
        assert scores(tmp_path / "out", data, mask_threshold=0.3)["mean"]["mask"]["Dice"] == 1

"""Scoring of written predictions: the right pixels, the right mean, and errors that name the cases."""
import json
import os

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import distance

from guided_diffusion_core import evaluation, outputs
from guided_diffusion_core.data import brats, isic, phantoms
from guided_diffusion_core.errors import UserError


@pytest.fixture
def images(tmp_path):
    """Three skin-lesion phantoms: dataset, truths, and a folder for predictions."""
    phantoms.write_isic_phantoms(tmp_path / "isic", train=0, test=3, size=64, seed=2)
    (tmp_path / "out").mkdir()
    dataset = isic.IsicDataset(tmp_path / "isic", 64, "Test")
    return dataset, isic.list_truths(tmp_path / "isic"), tmp_path / "out"


def write_predictions(dataset, folder, threshold=0.5, seed=0):
    """Random probabilities around the truth; returns them by case name, as written."""
    generator, written = np.random.default_rng(seed), {}
    for case in dataset.cases():
        truth = np.stack([dataset[index].mask[0] for index in case.indices])
        probability = np.clip(truth * 0.4 + generator.random(truth.shape) * 0.6, 0, 1)
        paths = outputs.CaseWriter(folder).write(case, probability, probability / 2, threshold)
        written[case.name] = outputs.read_output(paths["probability"])
    return written


def scipy_scores(prediction, truth):
    return [1 - score(prediction.ravel(), truth.ravel()) for score in (distance.dice, distance.jaccard)]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_scores_at_the_size_of_the_truth(images, threshold):
    dataset, truths, folder = images
    written = write_predictions(dataset, folder)
    summary = evaluation.evaluate(folder, truths, threshold)
    expected = []
    for truth, row in zip(truths, summary["metric_per_case"]):
        native = np.asarray(Image.open(truth.path)) == 255
        dice, iou = scipy_scores(written[truth.name] >= np.float32(threshold), native)
        assert row["case"] == truth.name and row["scored_from"] == "probability"
        assert (row["dice"], row["iou"]) == pytest.approx((dice, iou), abs=1e-12)
        expected.append((dice, iou))
    assert list(summary["mean"].values()) == pytest.approx(np.mean(expected, axis=0), abs=1e-12)
    assert summary["threshold"] == threshold and summary["scored_from"] == {"probability": 3}
    assert summary["n_cases"] == 3 and summary["n_both_empty"] == 0


def test_mask_file_where_there_is_no_probability(images):
    dataset, truths, folder = images
    write_predictions(dataset, folder, threshold=0.3)
    from_probability = evaluation.evaluate(folder, truths, 0.3)
    os.remove(folder / f"{truths[0].name}_probability.tiff")
    summary = evaluation.evaluate(folder, truths, 0.9)  # too high for the two others' probabilities
    assert summary["scored_from"] == {"mask": 1, "probability": 2}
    first = summary["metric_per_case"][0]
    assert first["dice"] == from_probability["metric_per_case"][0]["dice"] and first["scored_from"] == "mask"
    assert "1 cases without a probability file" in evaluation.format_table(summary)


def test_both_empty_is_counted_apart(images):
    dataset, truths, folder = images
    write_predictions(dataset, folder)
    full = evaluation.evaluate(folder, truths, 0.5)
    case = dataset.cases()[1]
    Image.new("L", case.shape[::-1]).save(truths[1].path)
    outputs.CaseWriter(folder).write(case, np.zeros((1, 64, 64)), np.zeros((1, 64, 64)), 0.5)
    summary = evaluation.evaluate(folder, truths, 0.5)
    row = summary["metric_per_case"][1]
    assert row["both_empty"] and row["dice"] is None and summary["n_both_empty"] == 1
    rest = [full["metric_per_case"][i]["dice"] for i in (0, 2)]
    assert summary["mean"]["dice"] == pytest.approx(np.mean(rest))
    # a false alarm on an empty truth is no empty pair: it scores 0
    outputs.CaseWriter(folder).write(case, np.ones((1, 64, 64)), np.zeros((1, 64, 64)), 0.5)
    summary = evaluation.evaluate(folder, truths, 0.5)
    assert summary["n_both_empty"] == 0 and summary["metric_per_case"][1]["dice"] == 0


def test_nothing_to_average(images):
    dataset, truths, folder = images
    for case, truth in zip(dataset.cases(), truths):
        Image.new("L", case.shape[::-1]).save(truth.path)
        outputs.CaseWriter(folder).write(case, np.zeros((1, 64, 64)), np.zeros((1, 64, 64)), 0.5)
    summary = evaluation.evaluate(folder, truths, 0.5)
    assert summary["mean"] == {"dice": None, "iou": None} and summary["n_both_empty"] == 3
    assert "0 cases scored" in evaluation.format_table(summary)


def test_missing_predictions_are_all_named(images):
    dataset, truths, folder = images
    write_predictions(dataset, folder)
    for truth in truths[:2]:
        for path in folder.glob(f"{truth.name}_*"):
            path.unlink()
    for function in (lambda: evaluation.evaluate(folder, truths, 0.5),
                     lambda: evaluation.mask_agreement(folder, folder, truths)):
        with pytest.raises(UserError, match=f"2 of 3 cases .{truths[0].name}, {truths[1].name}"):
            function()


@pytest.mark.parametrize("found", ["no such folder", "an empty folder"])
def test_folder_without_predictions(images, found):
    _, truths, folder = images
    with pytest.raises(UserError, match=found):
        evaluation.evaluate(folder if "empty" in found else folder / "nowhere", truths, 0.5)


def test_prediction_of_another_size(images):
    dataset, truths, folder = images
    write_predictions(dataset, folder)
    Image.fromarray(np.zeros((9, 8), np.float32)).save(folder / f"{truths[0].name}_probability.tiff")
    with pytest.raises(UserError, match=r"_probability.tiff: found size \(9, 8\); expected \(64, "):
        evaluation.evaluate(folder, truths, 0.5)


def test_volume_dice_over_the_selected_slices(tmp_path):
    phantoms.write_brats_phantom(tmp_path / "brats", "A", (20, 24, 16), 0)
    (tmp_path / "out").mkdir()
    written = write_predictions(brats.BratsDataset(tmp_path / "brats", 32), tmp_path / "out")
    for spec in ("all", "odd,tumour"):
        truths = brats.list_truths(tmp_path / "brats", spec)
        native, slices = evaluation.read_truth(truths[0]), list(truths[0].slices)
        summary = evaluation.evaluate(tmp_path / "out", truths, 0.5)
        expected = scipy_scores((written["A"] >= 0.5)[:, :, slices], native[:, :, slices])
        assert list(summary["mean"].values()) == pytest.approx(expected, abs=1e-12)
        assert summary["n_cases"] == 1


def test_agreement_of_two_folders(tmp_path):
    phantoms.write_brats_phantom(tmp_path / "brats", "A", (20, 24, 16), 0)
    dataset = brats.BratsDataset(tmp_path / "brats", 32, slices="odd")
    masks = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        masks.append(write_predictions(dataset, tmp_path / str(seed), seed=seed)["A"][:, :, 1::2] >= 0.5)
    truths = brats.list_truths(tmp_path / "brats", "odd")
    shares = evaluation.mask_agreement(tmp_path / "0", tmp_path / "1", truths)
    assert shares == {"A": pytest.approx(np.mean(masks[0] == masks[1]))} and 0.5 < shares["A"] < 1


def test_summary_file_and_table(images, tmp_path):
    dataset, truths, folder = images
    write_predictions(dataset, folder)
    summary = evaluation.evaluate(folder, truths, 0.5)
    evaluation.write_summary(folder / "summary.json", summary)
    assert json.loads((folder / "summary.json").read_text()) == summary
    table = evaluation.format_table(summary)
    for row in summary["metric_per_case"]:
        assert f"{row['case']}  {row['dice']:6.4f}  {row['iou']:6.4f}" in table
    assert f"{summary['mean']['dice']:6.4f}" in table and "threshold 0.5" in table

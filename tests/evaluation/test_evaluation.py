"""Test the scoring of written predictions: the right pixels, nnU-Net's keys, empty masks, errors that name cases."""

import dataclasses
import json
import os

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import distance
from support.evaluations import two_labels

from guided_diffusion_core import evaluation
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths, open_dataset, phantoms
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.results import outputs

# of nnunetv2.evaluation.evaluate_predictions.compute_metrics
NNUNET = {"Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"}


@pytest.fixture
def images(tmp_path):
    """Return three skin-lesion phantoms: dataset, truths, and a folder for predictions."""
    phantoms.write_isic_phantoms(tmp_path / "isic", train=0, test=3, size=64, seed=2)
    (tmp_path / "out").mkdir()
    config = DataConfig(data_name="ISIC", data_dir=str(tmp_path / "isic"))
    dataset = open_dataset(config, 64, "Test", need_masks=True)
    return dataset, list_truths(config), tmp_path / "out"


def write_predictions(dataset, folder, threshold=0.5, seed=0):
    """Write random probabilities near the truth; return them by case name, as written."""
    generator = np.random.default_rng(seed)
    written = {}
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
        assert row["reference_file"] == truth.path
        assert row["prediction_file"] == str(folder / f"{truth.name}_probability.tiff")
        found = row["metrics"]["mask"]
        assert (found["Dice"], found["IoU"]) == pytest.approx((dice, iou), abs=1e-12)
        expected.append((dice, iou))
    for statistic, of in (("mean", np.mean), ("median", np.median)):
        values = [summary[statistic]["mask"][metric] for metric in ("Dice", "IoU")]
        assert values == pytest.approx(of(expected, axis=0), abs=1e-12)
    assert summary["threshold"] == threshold and summary["scored_from"] == {"probability": 3}
    assert summary["n_cases"] == 3 and summary["n_both_empty"] == {"mask": 0} and summary["per_slice"] is None


def test_keys_and_means_are_nnunets(tmp_path):
    truths, written = two_labels(tmp_path)
    summary = evaluation.evaluate(tmp_path, truths, 0.5)
    assert {"metric_per_case", "mean", "foreground_mean"} <= set(summary)
    rows = {row["case"]: row for row in summary["metric_per_case"]}
    for (name, label), mask in written.items():
        assert {"metrics", "prediction_file", "reference_file"} <= set(rows[name])
        found = rows[name]["metrics"][label]
        assert set(found) >= NNUNET
        truth = read_truth_masks(next(truth for truth in truths if truth.name == name))[("disc", "cup").index(label)]
        assert [found[key] for key in ("TP", "FP", "FN", "TN")] == [
            np.sum(truth & mask),
            np.sum(~truth & mask),
            np.sum(truth & ~mask),
            np.sum(~truth & ~mask),
        ]
        assert (found["n_ref"], found["n_pred"]) == (truth.sum(), mask.sum())
    per_label = {
        label: {key: [rows[name]["metrics"][label][key] for name in "abc"] for key in NNUNET}
        for label in ("disc", "cup")
    }
    for label, values in per_label.items():  # numpy.nanmean over the cases, as nnU-Net has it
        for key, of_cases in values.items():
            expected = np.nanmean([np.nan if value is None else value for value in of_cases])
            assert summary["mean"][label][key] == pytest.approx(expected, abs=1e-12)
    for key in NNUNET:
        expected = np.mean([summary["mean"][label][key] for label in ("disc", "cup")])
        assert summary["foreground_mean"][key] == pytest.approx(expected, abs=1e-12)
    assert summary["n_both_empty"] == {"disc": 0, "cup": 1} and rows["c"]["metrics"]["cup"]["Dice"] is None
    assert rows["a"]["prediction_file"]["cup"].endswith("a_cup_mask.png")


def test_a_label_without_file_is_a_missing_case(tmp_path):
    truths, _ = two_labels(tmp_path)
    os.remove(tmp_path / "b_cup_mask.png")
    with pytest.raises(UserError, match=r"1 of 3 cases \(b\)"):
        evaluation.evaluate(tmp_path, truths, 0.5)


def test_every_score_is_defined_in_the_file(images):
    dataset, truths, folder = images
    write_predictions(dataset, folder)
    summary = evaluation.evaluate(folder, truths, 0.5, evaluation.Surfaces())
    text = " ".join(f"{name} {rule}" for name, rule in summary["definitions"].items())
    for name in (*summary["mean"]["mask"], "median", "interval", "ECE", "retained", "foreground_mean", "empty masks"):
        assert name in text
    assert "tolerance of NSD" in summary["definitions"]


def test_mask_file_where_there_is_no_probability(images):
    dataset, truths, folder = images
    write_predictions(dataset, folder, threshold=0.3)
    from_probability = evaluation.evaluate(folder, truths, 0.3)
    os.remove(folder / f"{truths[0].name}_probability.tiff")
    summary = evaluation.evaluate(folder, truths, 0.9)  # too high for the two others' probabilities
    assert summary["scored_from"] == {"mask": 1, "probability": 2}
    first = summary["metric_per_case"][0]
    assert first["metrics"] == from_probability["metric_per_case"][0]["metrics"] and first["scored_from"] == "mask"
    assert (
        f"1 cases without a probability file: their mask file was scored as it is ({truths[0].name})"
        in evaluation.format_table(summary)
    )


def test_both_empty_is_counted_apart(images):
    dataset, truths, folder = images
    write_predictions(dataset, folder)
    full = evaluation.evaluate(folder, truths, 0.5)
    case = dataset.cases()[1]
    Image.new("L", case.shape[::-1]).save(truths[1].path)
    outputs.CaseWriter(folder).write(case, np.zeros((1, 64, 64)), np.zeros((1, 64, 64)), 0.5)
    summary = evaluation.evaluate(folder, truths, 0.5)
    found = summary["metric_per_case"][1]["metrics"]["mask"]
    assert found["Dice"] is found["recall"] is None and summary["n_both_empty"] == {"mask": 1}
    assert found["specificity"] == 1
    rest = [full["metric_per_case"][i]["metrics"]["mask"]["Dice"] for i in (0, 2)]
    assert summary["mean"]["mask"]["Dice"] == pytest.approx(np.mean(rest))
    # a false alarm on an empty truth is no empty pair: it scores 0
    outputs.CaseWriter(folder).write(case, np.ones((1, 64, 64)), np.zeros((1, 64, 64)), 0.5)
    summary = evaluation.evaluate(folder, truths, 0.5)
    assert summary["n_both_empty"] == {"mask": 0}
    assert summary["metric_per_case"][1]["metrics"]["mask"]["Dice"] == 0


def test_nothing_to_average(images):
    dataset, truths, folder = images
    for case, truth in zip(dataset.cases(), truths):
        Image.new("L", case.shape[::-1]).save(truth.path)
        outputs.CaseWriter(folder).write(case, np.zeros((1, 64, 64)), np.zeros((1, 64, 64)), 0.5)
    summary = evaluation.evaluate(folder, truths, 0.5, evaluation.Surfaces())
    assert summary["n_both_empty"] == {"mask": 3}
    for block in ("mean", "median", "interval"):
        assert {summary[block]["mask"][metric] for metric in ("Dice", "IoU", "HD95", "NSD")} == {None}
    assert "0 cases scored" in evaluation.format_table(summary)


def test_missing_predictions_are_all_named(images):
    dataset, truths, folder = images
    write_predictions(dataset, folder)
    for truth in truths[:2]:
        for path in folder.glob(f"{truth.name}_*"):
            path.unlink()
    for function in (
        lambda: evaluation.evaluate(folder, truths, 0.5),
        lambda: evaluation.evaluate_upstream(folder, truths),
        lambda: evaluation.mask_agreement(folder, folder, truths),
    ):
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


def test_volume_and_its_slices(tmp_path):
    phantoms.write_brats_phantom(tmp_path / "brats", "A", (20, 24, 16), 0)
    (tmp_path / "out").mkdir()
    config = DataConfig(data_name="BRATS", data_dir=str(tmp_path / "brats"))
    written = write_predictions(open_dataset(config, 32, "Test", need_masks=True), tmp_path / "out")
    for spec in ("all", "odd,tumour"):
        truths = list_truths(dataclasses.replace(config, slices=spec))
        native = read_truth_masks(truths[0])[0]
        slices = list(truths[0].slices)
        summary = evaluation.evaluate(tmp_path / "out", truths, 0.5)
        prediction = written["A"] >= 0.5
        expected = scipy_scores(prediction[:, :, slices], native[:, :, slices])
        mean = summary["mean"]["whole_tumour"]
        assert [mean["Dice"], mean["IoU"]] == pytest.approx(expected, abs=1e-12)
        row = summary["metric_per_case"][0]
        assert summary["n_cases"] == 1 and row["slices"] == slices
        filled = [z for z in slices if (prediction | native)[:, :, z].any()]
        of_slices = {z: scipy_scores(prediction[:, :, z], native[:, :, z])[0] for z in filled}
        for z, dice in zip(slices, row["per_slice"]["whole_tumour"]["Dice"], strict=True):
            assert dice == (pytest.approx(of_slices[z], abs=1e-12) if z in filled else None)
        found = summary["per_slice"]
        assert found["mean"]["whole_tumour"]["Dice"] == pytest.approx(np.mean(list(of_slices.values())))
        assert (found["n_slices"], found["n_both_empty"]) == (len(slices), {"whole_tumour": len(slices) - len(filled)})


def test_summary_file_and_table(images):
    dataset, truths, folder = images
    write_predictions(dataset, folder)
    summary = evaluation.evaluate(folder, truths, 0.5, evaluation.Surfaces())
    evaluation.write_summary(folder / "summary.json", summary)
    assert json.loads((folder / "summary.json").read_text()) == summary
    table = evaluation.format_table(summary)
    for row in summary["metric_per_case"]:
        shown = "".join(f"{row['metrics']['mask'][metric]:9.4f}" for metric in ("Dice", "IoU", "HD95", "NSD"))
        assert f"{row['case']}  mask {shown}" in table
    assert f"{summary['mean']['mask']['Dice']:9.4f}" in table and "threshold 0.5" in table


@pytest.mark.parametrize("broken", ["nan", "inf"])
def test_json_has_no_number_that_json_lacks(tmp_path, broken):
    with pytest.raises(ValueError, match="JSON"):
        evaluation.write_summary(tmp_path / "summary.json", {"mean": float(broken)})
    assert not list(tmp_path.iterdir())

"""Test segmentation_env.py and compare_runs.py: flags, files, reports, and errors that leave no files."""

import json
import re
import subprocess

import numpy as np
import pytest
from medpy.metric import binary
from PIL import Image
from support.commands import assert_refused, files_below
from support.evaluations import two_labels
from support.pages import HOSTILE, TAGS, Page

from guided_diffusion_core import evaluation
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths, open_dataset, phantoms
from guided_diffusion_core.evaluation import pictures, report
from guided_diffusion_core.results.display import COLOURS, draw_outlines
from guided_diffusion_core.results.outputs import CaseWriter

FILES = {"comparison.json", "comparison.html", "bland_altman.png", "scatter.png"}


def write_run(dataset, folder, seed):
    """Write a run whose masks are noisy versions of the truth; later cases are noisier."""
    generator = np.random.default_rng(seed)
    folder.mkdir()
    for place, case in enumerate(dataset.cases()):
        truth = np.stack([dataset[index].mask[0] for index in case.indices])
        wrong = generator.random(truth.shape) < 0.05 * (place + 1)
        probability = np.where(wrong, 1 - truth, truth).astype(np.float32)
        CaseWriter(folder).write(case, probability, 0.3 * wrong, 0.5)
    return folder


@pytest.fixture
def runs(tmp_path):
    """Return (folder of the data, folders of two runs on its three pictures)."""
    _, data = phantoms.write_isic_phantoms(tmp_path / "isic", train=0, test=3, size=40, seed=2)
    dataset = open_dataset(isic_config(data), 32, "Test", need_masks=True)
    return data, [write_run(dataset, tmp_path / name, seed) for seed, name in enumerate("ab")]


def assert_needs_nothing(page):
    """Require a page without scripts and without files from outside."""
    assert set(page.tags) <= TAGS
    assert all(png_size(value) for name, value in page.attributes if name in ("src", "href"))
    assert not re.search(r"@import|url\(", page.source)


def png_size(uri):
    return uri.startswith("data:image/png;base64,") and len(uri)


@pytest.mark.parametrize(
    "names", [("--inp_pth", "--out_pth"), ("--pred_path", "--gt_pred"), ("--inp_pth", "--data_dir")]
)
def test_flags_of_the_original_and_of_the_port(command, runs, names):
    data, (folder, _) = runs
    code, printed, errors = command("segmentation_env", names[0], folder, names[1], data, "--data_name", "ISIC")
    assert code == 0, errors
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["n_cases"] == 3 and f"{summary['mean']['mask']['Dice']:.4f}" in printed
    assert (folder / "report.html").is_file()


def test_upstream_protocol_has_a_file_of_its_own(command, runs):
    data, (folder, _) = runs
    flags = ("--pred_path", folder, "--gt_pred", data, "--data_name", "ISIC", "--protocol", "upstream")
    code, printed, errors = command("segmentation_env", *flags)
    assert code == 0 and "original's protocol" in printed, errors
    assert json.loads((folder / "summary_upstream.json").read_text())["protocol"] == "upstream"
    assert not (folder / "summary.json").exists()
    for flag in ("--threshold", "--surfaces"):
        assert_refused(command("segmentation_env", *flags, flag, "1"), "--threshold or --surfaces", "upstream")


@pytest.mark.parametrize(
    "flags, text",
    [
        (("--threshold", "0"), "--threshold"),
        (("--threshold", "1.5"), "--threshold"),
        (("--surfaces", "True", "--nsd_tolerance", "0"), "--nsd_tolerance"),
        (("--surfaces", "True", "--pixel_spacing", "nan"), "--pixel_spacing"),
        (("--pictures", "-1"), "--pictures"),
    ],
)
def test_numbers_out_of_range(command, runs, flags, text):
    data, (folder, other) = runs
    before = files_below(folder)
    assert_refused(
        command("segmentation_env", "--inp_pth", folder, "--out_pth", data, "--data_name", "ISIC", *flags), text
    )
    assert_refused(
        command(
            "compare_runs",
            folder,
            other,
            "--data_dir",
            data,
            "--data_name",
            "ISIC",
            "--out_dir",
            folder.parent / "out",
            *flags,
        ),
        text,
    )
    assert files_below(folder) == before and not (folder.parent / "out").exists()


def test_report_shows_the_worst_cases_first(runs, tmp_path):
    data, (folder, _) = runs
    truths = list_truths(isic_config(data))
    Image.new("L", Image.open(truths[0].path).size).save(truths[0].path)  # the best case becomes an empty one
    (folder / f"{truths[1].name}_uncertainty.tiff").unlink()
    summary = evaluation.evaluate(folder, truths, 0.5, evaluation.Surfaces())
    source = pictures.ImageSource(isic_config(data))
    report.write_report(tmp_path / "report.html", summary, folder, truths, source, 2)
    page = Page(tmp_path / "report.html")
    assert_needs_nothing(page)
    assert [png_size(image["src"]) > 2000 for image in page.images] == [True] * 4, (
        "colours, two cases and the calibration"
    )
    worst = sorted(summary["metric_per_case"], key=lambda row: row["metrics"]["mask"]["Dice"])
    shown = re.findall(r"<b>(ISIC_\d+)</b>", page.source)
    assert shown == [row["case"] for row in worst[:2]] and "2 of 3" in page.text
    listed = re.findall(r'<th scope="row">(ISIC_\d+)</th>', page.source)
    assert listed == [row["case"] for row in worst]
    for value in (worst[1]["metrics"]["mask"]["HD95"], *summary["interval"]["mask"]["Dice"]):
        assert f"{value:.4f}" in page.text
    assert page.text.count("no uncertainty was written") == (truths[1].name in shown)


@pytest.mark.parametrize(
    "largest, words",
    [
        (None, "no uncertainty was written"),
        (0.0, "the members of the ensemble are practically equal"),
        (0.0049, "practically equal (uncertainty below 0.005 everywhere)"),
        (0.005, "uncertainty to 0.005"),
        (0.5, "uncertainty to 0.5"),
    ],
)
def test_the_uncertainty_in_words(largest, words):
    assert words in report._in_words(largest)


def isic_config(data):
    return DataConfig(data_name="ISIC", data_dir=str(data))


def brats_config(folder, slices):
    return DataConfig(data_name="BRATS", data_dir=str(folder), slices=slices)


def test_picture_of_a_case(runs):
    """Truth, prediction and errors are in the right places and in the colours of the legend."""
    data, (folder, _) = runs
    truth = list_truths(isic_config(data))[0]
    expected = np.zeros((1, 30, 30), bool)
    expected[:, 5:15, 5:25] = True
    scored = evaluation.predictions.Scored(expected, np.roll(expected, 10, axis=1), None, None)
    uri, slice_index, largest = pictures.case_picture(pictures.ImageSource(isic_config(data)), truth, scored)
    assert slice_index is largest is None and png_size(uri) > 2000
    image = np.full((30, 30, 3), 128, np.uint8)
    drawn = draw_outlines(image, expected)
    assert (drawn[5, 5:25] == COLOURS[0]).all() and (drawn[6:14, 6:24] == 128).all()
    assert (drawn[:5] == 128).all(), "outlines lie inside their mask"
    assert (pictures.join_panels([image, drawn], rotate=True)[:, :30] == 128).all()


def test_report_without_images(runs, tmp_path):
    """A report can be written from masks without their images."""
    data, (folder, _) = runs
    truths = list_truths(isic_config(data))
    for path in (tmp_path / "isic").rglob("*.jpg"):
        path.unlink()
    source = pictures.ImageSource(isic_config(data))
    summary = evaluation.evaluate(folder, truths, 0.5)
    report.write_report(tmp_path / "report.html", summary, folder, truths, source, 1)
    assert "images were not found" in Page(tmp_path / "report.html").text


def test_report_of_a_volume_shows_its_worst_slice(tmp_path):
    phantoms.write_brats_phantom(tmp_path / "brats", "A", (20, 24, 16), 0)
    config = brats_config(tmp_path / "brats", "2:12:1")
    folder = write_run(open_dataset(config, 16, "Test", need_masks=True), tmp_path / "out", 0)
    truths = list_truths(config)
    source = pictures.ImageSource(config)
    summary = evaluation.evaluate(folder, truths, 0.5)
    report.write_report(tmp_path / "report.html", summary, folder, truths, source, 1)
    found = summary["metric_per_case"][0]["per_slice"]["whole_tumour"]
    wrong = np.add(found["FP"], found["FN"])
    assert f"A, slice {truths[0].slices[int(wrong.argmax())]};" in Page(tmp_path / "report.html").text


def test_two_runs_side_by_side(command, runs, tmp_path):
    data, (first, second) = runs
    out = tmp_path / "out"
    code, printed, errors = command(
        "compare_runs",
        first,
        second,
        "--data_name",
        "ISIC",
        "--data_dir",
        data,
        "--titles",
        "A$x$",
        HOSTILE,
        "--out_dir",
        out,
    )
    assert code == 0, errors
    assert {path.name for path in out.iterdir()} == FILES
    result = json.loads((out / "comparison.json").read_text())
    summaries = [evaluation.evaluate(folder, list_truths(isic_config(data)), 0.5) for folder in (first, second)]
    dice = np.array([[row["metrics"]["mask"]["Dice"] for row in summary["metric_per_case"]] for summary in summaries])
    found = result["scores"]["mask"]["Dice"]
    differences = dice[1] - dice[0]
    assert [found["mean_first"], found["mean_second"]] == pytest.approx(dice.mean(axis=1))
    assert found["mean"] == pytest.approx(differences.mean())
    half = 1.96 * differences.std(ddof=1)
    assert found["limits"] == pytest.approx([differences.mean() - half, differences.mean() + half])
    assert differences.min() <= found["interval"][0] <= found["mean"] <= found["interval"][1] <= differences.max()
    assert found["largest"] == pytest.approx(abs(differences).max())
    masks = {
        path.name: [np.asarray(Image.open(folder / path.name)) > 0 for folder in (first, second)]
        for path in first.glob("*_mask.png")
    }
    rows = result["masks"]["mask"]
    for row in rows:
        pair = masks[f"{row['case']}_mask.png"]
        assert row["mask_dice"] == pytest.approx(binary.dc(*pair))
        assert row["pixel_agreement"] == np.mean(pair[0] == pair[1])
    assert [row["mask_dice"] for row in rows] == sorted(row["mask_dice"] for row in rows), "the least alike first"
    page = Page(out / "comparison.html")
    assert_needs_nothing(page)
    assert len(page.images) == 2 + 3 and f"{found['mean']:.4f}" in page.text
    assert f"{found['mean']:+.4f} [{found['interval'][0]:+.4f}" in printed


def test_a_run_equals_itself_and_scores_are_read_where_they_are(command, runs, tmp_path):
    data, (folder, other) = runs
    for run in (folder, other):
        assert command("segmentation_env", "--inp_pth", run, "--out_pth", data, "--data_name", "ISIC")[0] == 0
    assert command("compare_runs", folder, other, "--out_dir", tmp_path / "out")[0] == 0
    scored_here = command(
        "compare_runs", folder, other, "--data_dir", data, "--data_name", "ISIC", "--out_dir", tmp_path / "again"
    )
    assert scored_here[0] == 0
    texts = [(tmp_path / name / "comparison.json").read_text() for name in ("out", "again")]
    assert texts[0] == texts[1]
    assert command("compare_runs", folder, folder, "--out_dir", tmp_path / "same")[0] == 0
    same = json.loads((tmp_path / "same" / "comparison.json").read_text())
    assert same["scores"]["mask"]["Dice"]["interval"] == [0, 0]
    assert {row["mask_dice"] for row in same["masks"]["mask"]} == {1.0}


def test_agreement_of_volumes_is_that_of_the_selected_slices(tmp_path):
    phantoms.write_brats_phantom(tmp_path / "brats", "A", (20, 24, 16), 0)
    dataset = open_dataset(brats_config(tmp_path / "brats", "all"), 32, "Test", need_masks=True)
    folders = [write_run(dataset, tmp_path / name, seed) for seed, name in enumerate("ab")]
    truths = list_truths(brats_config(tmp_path / "brats", "odd"))
    masks = [evaluation.predictions.read_outputs([str(folder / "A_mask.nii.gz")])[0][..., 1::2] for folder in folders]
    expected = np.mean(masks[0] == masks[1])
    assert evaluation.mask_agreement(*folders, truths) == {"A": pytest.approx(expected)} and 0.5 < expected < 1
    scored = [evaluation.Run(folder.name, str(folder), evaluation.evaluate(folder, truths, 0.5)) for folder in folders]
    assert evaluation.compare(*scored)["masks"]["whole_tumour"][0]["pixel_agreement"] == pytest.approx(expected)


def test_two_labels(tmp_path):
    """Masks of two labels without uncertainty can be reported and compared."""
    truths, _ = two_labels(tmp_path)
    summary = evaluation.evaluate(tmp_path, truths, 0.5)
    page_path = tmp_path / "report.html"
    report.write_report(page_path, summary, tmp_path, truths, pictures.ImageSource(DataConfig("ISIC", "nowhere")), 3)
    page = Page(page_path)
    assert len(page.images) == 3, "no calibration without probability"
    for label in ("disc", "cup"):
        assert f"{label} Dice {summary['mean'][label]['Dice']:.4f}" in page.text
    assert "cup: 1 of 3 cases have both masks empty" in page.text
    run = evaluation.Run("a", str(tmp_path), summary)
    result = evaluation.compare(run, run)
    (tmp_path / "out").mkdir()
    report.write_comparison(tmp_path / "out", result, run, run, 1)
    assert result["masks"]["cup"][-1] == {"case": "c", "pixel_agreement": 1.0, "mask_dice": None}
    assert len(evaluation.table_rows(result)) == 2


def test_runs_that_cannot_be_compared(command, runs, tmp_path):
    data, (first, second) = runs
    out = ("--out_dir", tmp_path / "out")
    assert_refused(command("compare_runs", first, second, *out), "summary.json", "no such file")
    score = ("--out_pth", data, "--data_name", "ISIC")
    assert command("segmentation_env", "--inp_pth", first, *score)[0] == 0
    assert command("segmentation_env", "--inp_pth", second, *score, "--threshold", "0.7")[0] == 0
    assert_refused(command("compare_runs", first, second, *out), "threshold 0.7", "0.5")
    assert command("segmentation_env", "--inp_pth", second, *score)[0] == 0
    summary = json.loads((second / "summary.json").read_text())
    removed = summary["metric_per_case"].pop()["case"]
    (second / "summary.json").write_text(json.dumps(summary))
    assert_refused(command("compare_runs", first, second, *out), "only one of the two", removed)
    for broken in ("{", "[]", '{"metric_per_case": [{"case": "a"}], "labels": ["mask"]}'):
        (second / "summary.json").write_text(broken)
        assert_refused(command("compare_runs", first, second, *out), "no scores of this version")
    assert_refused(command("compare_runs", first, tmp_path / "nowhere", *score, *out), "no such folder")
    assert_refused(command("compare_runs", first, *out), "required: B")
    assert not (tmp_path / "out").exists()


def test_a_browser_shows_the_report(runs, tmp_path, browser):
    data, (folder, _) = runs
    truths = list_truths(isic_config(data))
    summary = evaluation.evaluate(folder, truths, 0.5)
    report.write_report(tmp_path / "report.html", summary, folder, truths, pictures.ImageSource(isic_config(data)), 3)
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=1000,1500",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={tmp_path / 'shown.png'}",
            (tmp_path / "report.html").as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = np.asarray(Image.open(tmp_path / "shown.png").convert("RGB"))
    outlines = (pixels == COLOURS[0]).all(axis=-1)
    assert outlines.mean() > 0.001 and (pixels.min(axis=-1) < 100).mean() > 0.005

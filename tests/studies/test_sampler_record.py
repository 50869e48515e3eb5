"""Test the record of the sampler study, written from points with made-up masks and courses."""

import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support.backends import ROOT
from support.small import small_config

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths
from guided_diffusion_core.data.phantoms import write_brats_phantom
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.results.outputs import MASK, output_path
from studies import samplers as sampler_record
from studies.sampler_study import Point

NETWORKS = ("epsilon", "x0")
POINTS = [
    Point(network, sampler, evaluations)
    for network in NETWORKS
    for sampler, evaluations in (
        ("ancestral", 1),
        ("ddim", 1),
        ("ancestral", 10),
        ("ddim", 10),
        ("ancestral", 1000),
        ("ancestral-limited", 10),
    )
]
POINTS.append(Point("x0", "ddim", 10, "jittor"))
SLICES = "2:7:2"  # three, all with a tumour
STEPS = {"epsilon": 5, "x0": 10}


def pixels_lost(point, number):
    """Return the number of pixels of a case's true mask that a point's mask misses, another one for each pair."""
    return 1 + 2 * POINTS.index(point) + number


def course(point):
    """Return a course in which every number identifies its point and evaluation."""
    share = POINTS.index(point) + 1
    steps = np.linspace(999, 0, point.evaluations).round().astype(int)
    return [
        {
            "t": int(t),
            "alpha_bar": 0.5,
            "noise_ratio": None if k == 0 else share + k / 8,
            "share": [0.0, share, share + 0.5],
            "noise_added": [0.0, 0.0, 0.0],
            "dice_xstart": round(k / 2048, 4),
        }
        for k, t in enumerate(steps)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return (folder of the record, drawn figures, Dice by (point, case)). The folder held an earlier record."""
    work = tmp_path_factory.mktemp("work")
    for number in (1, 2):
        write_brats_phantom(work / "data", f"BraTS2021_0000{number}", (40, 40, 8), seed=number)
    truths = list_truths(DataConfig(data_name="BRATS", data_dir=str(work / "data"), slices=SLICES))
    for name in NETWORKS:
        config = small_config(max_steps=10, lr_anneal_steps=20)
        checkpoints.save(work / name, STEPS[name], config, {checkpoints.NETWORK: {"a": np.ones(2, np.float32)}})
        (work / name / "config.json").write_text(
            json.dumps({"training": {"max_steps": 10, "lr_anneal_steps": 20}, "out_dir": f"{work}/{name}"})
        )
        for file in ("progress.jsonl", "progress.csv"):
            (work / name / file).write_text(f"{file} of {name}")
        (work / "points" / name).mkdir(parents=True)
        (work / "points" / name / "probe.json").write_text(
            json.dumps(
                [
                    {"t": 5, "pixels": 0.125, "error": 0.25, "share": 1.5, "asked": 2.5},
                    {"t": 999, "pixels": 0.0, "error": None, "share": None, "asked": None},
                ]
            )
        )
    dice = {}
    for point in POINTS:
        folder = work / "points" / point.name
        folder.mkdir()
        (folder / "course.json").write_text(json.dumps(course(point)))
        for number, truth in enumerate(truths):
            dice[point, truth.name] = write_mask(folder, truth, pixels_lost(point, number))
    log = work / "log"
    log.mkdir()
    (log / "of_an_earlier_record.png").write_bytes(b"")
    (log / "x1").mkdir()
    (log / sampler_record.PAGE).write_text("findings")
    figures = []
    figure = sampler_record.Figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_record, "Figure", lambda **keywords: figures.append(figure(**keywords)) or figures[-1])
        sampler_record.write_record(work, log, POINTS, truths)
    return log, figures, dice


def write_mask(folder, truth, lost):
    """Write the true mask without `lost` pixels of the scored slices, and wrong on all others. Returns its Dice."""
    mask = read_truth_masks(truth)[0]
    scored = np.zeros(mask.shape[2], bool)
    scored[[2, 4, 6]] = True
    total = int(mask[..., scored].sum())
    places = np.argwhere(mask & scored)[:lost]
    mask[tuple(places.T)] = False
    mask[..., ~scored] ^= True
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), output_path(folder, truth.name, MASK, True))
    return 2 * (total - lost) / (2 * total - lost)


def tables(text):
    """Return the tables of a Markdown text: lists of rows, which are lists of cells; the head first."""
    blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if "|---" not in line]
        for block in blocks
    ]


def test_files_of_the_record(made):
    log, _, _ = made
    assert {path.relative_to(log).as_posix() for path in log.rglob("*") if path.is_file()} == {
        "README.md",
        "tables.md",
        "table.csv",
        "report.json",
        "courses.json",
        "probe.json",
        "dice_vs_evaluations.png",
        "courses.png",
        *(f"{name}/{file}" for name in NETWORKS for file in ("config.json", "progress.jsonl", "progress.csv")),
    }
    assert (log / sampler_record.PAGE).read_text() == "findings", "what is written by hand stays"
    assert not (log / "x1").exists()
    for name in NETWORKS:
        assert json.loads((log / name / "config.json").read_text())["out_dir"] == name, "no path of this machine"
        assert (log / name / "progress.csv").read_text() == f"progress.csv of {name}"
    for file in ("dice_vs_evaluations.png", "courses.png"):
        assert np.ptp(np.asarray(Image.open(log / file).convert("L"))) > 100


def test_dice_is_the_mean_over_the_cases_on_the_scored_slices(made):
    log, _, dice = made
    report = json.loads((log / "report.json").read_text())
    with open(log / "table.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(report["points"]) == len(listed) == len(POINTS)
    for point, row, line in zip(POINTS, report["points"], listed):
        expected = {case: value for (one, case), value in dice.items() if one == point}
        assert row["dice_per_case"] == pytest.approx(expected) and len(expected) == 2
        assert row["dice"] == pytest.approx(sum(expected.values()) / 2)
        assert float(line["dice"]) == row["dice"]
        for found in (row, line):
            assert [str(found[name]) for name in ("network", "backend", "sampler", "evaluations")] == [
                point.network,
                point.backend,
                point.sampler,
                str(point.evaluations),
            ]


def test_agreement_of_a_point_with_its_twin(made):
    """Compare with the number of pixels that one of the two masks misses and the other does not."""
    log, _, _ = made
    jittor = POINTS[-1]
    twin = Point("x0", "ddim", 10)
    agreement = json.loads((log / "report.json").read_text())["agreement"]
    assert agreement.keys() == {jittor.name}
    differing = pixels_lost(jittor, 0) - pixels_lost(twin, 0)
    share = 1 - differing / (3 * 40 * 40)
    assert agreement[jittor.name] == {f"BraTS2021_0000{k}": pytest.approx(share) for k in (1, 2)}
    cell = f"BraTS2021_00001 {100 * share:.3f}%, BraTS2021_00002 {100 * share:.3f}%"
    assert tables((log / sampler_record.TABLES).read_text())[-1] == [["point", "agreement"], [jittor.name, cell]]


def test_courses_of_the_record(made):
    """Require those of 10 and 1000 evaluations in PyTorch; a long one is thinned except at its end."""
    log, _, _ = made
    courses = json.loads((log / "courses.json").read_text())
    assert list(courses) == [point.name for point in POINTS if point.backend == "pytorch" and point.evaluations > 1]
    for point in POINTS:
        if point.name in courses and point.evaluations == 10:
            assert courses[point.name] == course(point)
    kept = courses["x0-pytorch-ancestral-1000"]
    whole = course(Point("x0", "ancestral", 1000))
    assert kept[-10:] == whole[-10:] and kept[0] == whole[0] and 90 <= len(kept) <= 110
    places = [whole.index(entry) for entry in kept]
    assert np.all(np.diff(places) > 0) and max(np.diff(places)) <= 12


def test_tables_of_the_page(made):
    log, _, dice = made
    text = (log / sampler_record.TABLES).read_text()
    first, second, probes, cause, _ = tables(text)
    for network, table in zip(NETWORKS, (first, second)):
        assert table[0] == ["evaluations", "1", "10", "1000"]
        means = {
            (point.sampler, str(point.evaluations)): np.mean([dice[point, f"BraTS2021_0000{k}"] for k in (1, 2)])
            for point in POINTS
            if point.network == network and point.backend == "pytorch"
        }
        for sampler, row in zip(sampler_record.TITLES, table[1:], strict=True):
            assert row[0] == sampler_record.TITLES[sampler]
            assert row[1:] == [
                f"{means[sampler, number]:.3f}" if (sampler, number) in means else "" for number in table[0][1:]
            ]
    assert probes[1:] == [
        row
        for name in NETWORKS
        for row in ([name, "5", "12.5%", "0.25", "1.50", "2.50"], [name, "999", "0.0%", "-", "-", "-"])
    ]
    shown = {(row[0], row[1], row[2]): row[3:] for row in cause[1:]}
    assert len(shown) == len(cause) - 1 == 8
    share = POINTS.index(Point("x0", "ancestral", 10)) + 1
    assert shown["x0", sampler_record.TITLES["ancestral"], "10"] == [
        f"{share + 0.5:.2f}",
        ", ".join(f"{share + k / 8:.3g}" for k in (7, 8, 9)),
        ", ".join(f"{round(k / 2048, 4):.3g}" for k in (7, 8, 9)),
    ]


def test_trainings_and_slices_in_words(made):
    text = " ".join((made[0] / sampler_record.TABLES).read_text().split())
    assert (
        "`epsilon`, the network predicts epsilon, 10 optimizer steps (the learning rate falls over 20), "
        "sampled from its checkpoint of step 5; `x0`, the network predicts x0, 10 optimizer steps (the "
        "learning rate falls over 20)."
    ) in text
    assert "slices: BraTS2021_00001: 2, 4, 6, BraTS2021_00002: 2, 4, 6;" in text


def test_curves_of_the_plots(made):
    _, (dice_figure, course_figure), dice = made
    for axes, network in zip(dice_figure.axes, NETWORKS, strict=True):
        assert axes.get_title() == sampler_record.OBJECTIVES[network]
        lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        expected = [
            [point.evaluations, np.mean([dice[point, f"BraTS2021_0000{k}"] for k in (1, 2)])]
            for point in POINTS
            if (point.network, point.sampler) == (network, "ancestral")
        ]
        np.testing.assert_allclose(lines[sampler_record.TITLES["ancestral"]], expected)
        assert lines[sampler_record.TITLES["dpm-solver"]] == []
    upper = course_figure.axes[1]
    point = Point("x0", "ddim", 10)
    lines = {line.get_label(): line.get_xydata() for line in upper.lines}
    found = lines[f"{sampler_record.TITLES['ddim']}, 10 evaluations"]
    np.testing.assert_array_equal(
        found, np.array([[1 + entry["t"], entry["noise_ratio"]] for entry in course(point)], np.float64)
    )


def test_the_kept_record_says_what_its_own_files_say():
    log = ROOT / "logs" / "samplers-brats2021-64px"
    report = json.loads((log / "report.json").read_text())
    with open(log / "table.csv", newline="") as file:
        listed = {
            tuple(row[name] for name in ("network", "backend", "sampler", "evaluations")): float(row["dice"])
            for row in csv.DictReader(file)
        }
    assert len(listed) == len(report["points"])
    for row in report["points"]:
        assert listed[row["network"], row["backend"], row["sampler"], str(row["evaluations"])] == row["dice"]
        assert row["dice"] == pytest.approx(np.mean(list(row["dice_per_case"].values())))
    titles = {title: sampler for sampler, title in sampler_record.TITLES.items()}
    for network, (head, *rows) in zip(("x0", "epsilon"), tables((log / sampler_record.TABLES).read_text())):
        cells = {(titles[title], number): cell for title, *values in rows for number, cell in zip(head[1:], values)}
        assert {key: cell for key, cell in cells.items() if cell} == {
            (sampler, number): f"{value:.3f}"
            for (name, backend, sampler, number), value in listed.items()
            if (name, backend) == (network, "pytorch")
        }

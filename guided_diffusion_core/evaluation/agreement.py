"""Comparison of two sampled and scored runs: of two frameworks, two samplers or two seeds."""

import json
from dataclasses import dataclass, replace

import blobfile as bf
import numpy as np

from guided_diffusion_core.data.dataset import Truth
from guided_diffusion_core.errors import UserError, found_expected, join_names
from guided_diffusion_core.evaluation import scores, statistics
from guided_diffusion_core.evaluation.metrics import count, pixel_agreement
from guided_diffusion_core.evaluation.predictions import (
    common_labels,
    output_grid,
    output_paths,
    read_outputs,
    require_outputs,
    selected,
)
from guided_diffusion_core.results.outputs import MASK
from guided_diffusion_core.system.files import read_bytes
from guided_diffusion_core.system.progress import progress

DEFINITIONS = {
    "difference": "second minus first, of each case in which both runs have the score",
    "interval": statistics.INTERVAL_RULE.replace("of the mean", "of the mean difference"),
    "limits": "limits of agreement (Bland, Altman 1986): mean difference plus and minus 1.96 standard deviations "
    "(divisor n - 1); null below two cases",
    "pixel_agreement": "share of a case's scored pixels on which the two masks agree",
    "mask_dice": "Dice of the two runs' masks, one taken as the other's truth; null if both are empty",
}


@dataclass(frozen=True)
class Run:
    """One of the two runs.

    title:   its name in the reports.
    folder:  the folder of its masks.
    summary: return value of `summary.evaluate`.
    """

    title: str
    folder: str
    summary: dict


def mask_agreement(first_dir, second_dir, truths):
    """Compute the share of pixels on which the masks of two folders agree: a dict by case name.

    All labels and, for a volume, all selected slices are taken together.
    truths: list of `Truth` that name the cases, labels and slices; their files are not read.
    Raises `UserError` for missing masks and for masks of different sizes.
    """
    pairs = mask_pairs(first_dir, second_dir, truths, common_labels(truths))
    return {name: pixel_agreement(first, second) for name, first, second in pairs}


def compare(first, second):
    """Compare two `Run`s of the same cases: a dict of JSON values.

    Keys: titles, labels, n_cases, threshold, scores ({label: {score: differences}}, see `_differences`), masks
    ({label: rows}, one row per case with pixel_agreement and mask_dice, the least alike first), definitions.
    Raises `UserError` if the two differ in cases, slices, labels or threshold, and for missing masks.
    """
    _require_comparable(first, second)
    labels = first.summary["labels"]
    cases = {row["case"]: row for row in second.summary["metric_per_case"]}
    pairs = [(row, cases[row["case"]]) for row in first.summary["metric_per_case"]]
    return {
        "titles": [first.title, second.title],
        "labels": labels,
        "n_cases": len(pairs),
        "threshold": first.summary["threshold"],
        "scores": {label: _score_differences(pairs, label) for label in labels},
        "masks": _masks(first, second, labels),
        "definitions": DEFINITIONS,
    }


def read_summary(folder):
    """Read the summary that `medsegdiff score` has written into a folder of masks.

    Raises `UserError` if there is none, or if it is not a summary of this version.
    """
    path = bf.join(str(folder), "summary.json")
    if not bf.exists(path):
        raise found_expected(
            path,
            "no such file",
            "the scores of medsegdiff score",
            "Score the run, or give --data_name and --data_dir to score both here.",
        )
    try:
        summary = json.loads(read_bytes(path))
        _require_keys(summary)
    except (ValueError, KeyError, TypeError) as error:
        raise found_expected(
            path, f"no scores of this version ({error!r})", "the scores of medsegdiff score", "Score the run again."
        ) from error
    return summary


def _require_keys(summary):
    """Look up all that `compare` needs; raise KeyError or TypeError if something is missing."""
    summary["threshold"]
    for row in summary["metric_per_case"]:
        row["case"]
        row["reference_file"]
        for label in summary["labels"]:
            row["metrics"][label]["Dice"]


TABLE_HEAD = (
    "| first / second | label | cases | Dice, first | Dice, second | difference of Dice [95%] | of IoU [95%] | "
    "largest of a case | pixels alike, mean (lowest) | Dice between the masks, mean (lowest) |",
    "|" + "---|" * 10,
)


def table_rows(result):
    """Format the comparison as rows of a Markdown table, one per label; the header is `TABLE_HEAD`."""
    lines = []
    for label in result["labels"]:
        dice = result["scores"][label]["Dice"]
        iou = result["scores"][label]["IoU"]
        alike = [row["pixel_agreement"] for row in result["masks"][label]]
        mask_dice = statistics.defined(row["mask_dice"] for row in result["masks"][label])
        cells = [
            " / ".join(result["titles"]),
            label,
            str(dice["n"]),
            _number(dice["mean_first"]),
            _number(dice["mean_second"]),
            _with_interval(dice),
            _with_interval(iou),
            _number(dice["largest"]),
            f"{100 * np.mean(alike):.3f}% ({100 * min(alike):.3f}%)",
            f"{np.mean(mask_dice):.4f} ({min(mask_dice):.4f})" if mask_dice else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(value, sign=""):
    return "-" if value is None else f"{value:{sign}.4f}"


def _with_interval(found):
    low, high = found["interval"] or (None, None)
    return f"{_number(found['mean'], '+')} [{_number(low, '+')}, {_number(high, '+')}]"


def _require_comparable(first, second):
    for key in ("labels", "threshold"):
        _require_same(first, second, key, first.summary[key], second.summary[key])
    first_slices = _slices_by_case(first)
    second_slices = _slices_by_case(second)
    only_one = sorted(set(first_slices) ^ set(second_slices))
    if only_one:
        raise UserError(
            f"{first.folder} and {second.folder}: found {len(only_one)} cases in only one of the two "
            f"({join_names(only_one)}); expected the same cases. Sample and score the same data in both."
        )
    for case, slices in first_slices.items():
        _require_same(first, second, f"slices of {case}", slices, second_slices[case])
    second_orientations = _orientations(second)
    for case, orientation in _orientations(first).items():
        of_second = second_orientations.get(case, orientation)
        _require_same(first, second, f"the orientation of {case}", orientation, of_second)


def _slices_by_case(run):
    return {row["case"]: row.get("slices") for row in run.summary["metric_per_case"]}


def _orientations(run):
    """Return the orientations in which the slices of a run's volumes are numbered; older summaries have none."""
    rows = run.summary["metric_per_case"]
    return {row["case"]: row["orientation"] for row in rows if row.get("orientation")}


def _require_same(first, second, name, of_first, of_second):
    if of_first != of_second:
        raise found_expected(
            second.folder,
            f"{name} {of_second}",
            f"{of_first}, as in {first.folder}",
            "Score both runs in the same way.",
        )


def _score_differences(pairs, label):
    """Return {score: `_differences`} for the scores that both runs have."""
    first, second = (row["metrics"][label] for row in pairs[0])
    return {
        metric: _differences(pairs, label, metric) for metric in scores.SCORES if metric in first and metric in second
    }


def _differences(pairs, label, metric):
    """Compute statistics of the differences of one score.

    Keys: n, n_one_sided (cases that have the score in only one run), means, the mean difference with its interval
    and limits, the largest difference and its case, the values of all cases.
    """
    values = []  # (case, first, second); None for an undefined score
    for first, second in pairs:
        values.append((first["case"], first["metrics"][label][metric], second["metrics"][label][metric]))
    both = [row for row in values if None not in row]
    differences = [second - first for _, first, second in both]
    middle = statistics.mean(differences)
    deviation = None
    limits = None
    if len(both) > 1:
        deviation = float(np.std(differences, ddof=1))
        limits = [middle - 1.96 * deviation, middle + 1.96 * deviation]
    largest_case = None
    largest = None
    if both:
        largest_case, first, second = max(both, key=lambda row: abs(row[2] - row[1]))
        largest = abs(second - first)
    return {
        "n": len(both),
        "n_one_sided": sum(row[1:].count(None) == 1 for row in values),
        "mean_first": statistics.mean([first for _, first, _ in both]),
        "mean_second": statistics.mean([second for _, _, second in both]),
        "mean": middle,
        "interval": statistics.mean_interval(differences),
        "standard_deviation": deviation,
        "limits": limits,
        "largest": largest,
        "largest_case": largest_case,
        "per_case": [{"case": case, "first": first, "second": second} for case, first, second in values],
    }


def scored_truth(row):
    """Return the `Truth` of a scored case, whose files are not read, from its row in a summary."""
    return Truth(row["case"], row["reference_file"], row.get("slices"), orientation=row.get("orientation"))


def _masks(first, second, labels):
    """Compare the masks: {label: rows of case, pixel_agreement and mask_dice}, the least alike first."""
    truths = [scored_truth(row) for row in first.summary["metric_per_case"]]
    found = {label: [] for label in labels}
    pairs = mask_pairs(first.folder, second.folder, truths, labels)
    for name, one, other in progress(
        pairs, total=len(truths), unit="case", desc="comparing masks", leave=False, delay=2
    ):
        for place, label in enumerate(labels):
            agreement = pixel_agreement(one[place], other[place])
            dice = count(one[place], other[place]).dice
            found[label].append({"case": name, "pixel_agreement": agreement, "mask_dice": dice})
    for rows in found.values():
        # cases in which both masks are empty have no Dice; they come last
        rows.sort(key=lambda row: (row["mask_dice"] is None, row["mask_dice"] or 0, row["pixel_agreement"]))
    return found


def mask_pairs(first_dir, second_dir, truths, labels):
    """Yield (case name, first mask, second mask) of every case: the scored parts, bool (K, ...).

    truths: list of `Truth`; their files are not read.
    Raises `UserError` for missing masks and for masks of different sizes or on different grids.
    """
    for folder in (first_dir, second_dir):
        require_outputs(folder, truths, (MASK,), labels)
    for truth in truths:
        first_paths = output_paths(first_dir, truth.name, MASK, labels)
        second_paths = output_paths(second_dir, truth.name, MASK, labels)
        grid = output_grid(first_paths[0], truth.orientation)
        first = read_outputs(first_paths, grid, is_mask=True)
        if grid.shape is None:
            grid = replace(grid, shape=first.shape[1:])
        second = read_outputs(second_paths, grid, is_mask=True)
        yield truth.name, selected(first, truth), selected(second, truth)

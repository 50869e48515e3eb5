"""Two sampled and scored runs side by side: two frameworks, two samplers, two seeds."""

import json
from dataclasses import dataclass

import blobfile as bf
import numpy as np
from tqdm import tqdm

from guided_diffusion_core.data.dataset import Truth
from guided_diffusion_core.errors import UserError, found_expected, join_names
from guided_diffusion_core.evaluation import scores, statistics
from guided_diffusion_core.evaluation.metrics import count, pixel_agreement
from guided_diffusion_core.evaluation.predictions import (
    common_labels,
    output_paths,
    read_outputs,
    require_outputs,
    selected,
)
from guided_diffusion_core.results.outputs import MASK
from guided_diffusion_core.system.files import read_bytes

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
    """One of the two runs. title: how reports name it. folder: its masks. summary: of `summary.evaluate`."""

    title: str
    folder: str
    summary: dict


def mask_agreement(first_dir, second_dir, truths):
    """Share of pixels on which two folders' masks agree, a dict by case name; of a volume over the selected
    slices, of several labels over all of them. Raises `UserError` for missing masks and for masks of
    different sizes.

    truths: list of `Truth`, which name the cases, labels and slices; their files are not read.
    """
    return {
        name: pixel_agreement(first, second)
        for name, first, second in mask_pairs(first_dir, second_dir, truths, common_labels(truths))
    }


def compare(first, second):
    """Two `Run`s of the same cases side by side, a dict of JSON values.

    Keys: titles, labels, n_cases, scores ({label: {score: differences}}, see `_differences`), masks ({label:
    [rows]}, a row per case with pixel_agreement and mask_dice, the least alike first), definitions.
    Raises `UserError` where the two differ in cases, slices, labels or threshold, and for missing masks.
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
        "scores": {
            label: {
                metric: _differences(pairs, label, metric)
                for metric in scores.SCORES
                if all(metric in row["metrics"][label] for row in pairs[0])
            }
            for label in labels
        },
        "masks": _masks(first, second, labels),
        "definitions": DEFINITIONS,
    }


def read_summary(folder):
    """The summary that `segmentation_env.py` left in a folder of masks. Raises `UserError` where there is none,
    or one of another kind."""
    path = bf.join(str(folder), "summary.json")
    if not bf.exists(path):
        raise found_expected(
            path,
            "no such file",
            "the scores of segmentation_env.py",
            "Score the run, or give --data_name and --data_dir to score both here.",
        )
    try:
        summary = json.loads(read_bytes(path))
        for row in summary["metric_per_case"]:
            row["case"], row["reference_file"], [row["metrics"][label]["Dice"] for label in summary["labels"]]
        summary["threshold"]
    except (ValueError, KeyError, TypeError) as error:
        raise found_expected(
            path, f"no scores of this version ({error!r})", "the scores of segmentation_env.py", "Score the run again."
        ) from error
    return summary


def table_rows(result):
    """The comparison as rows of a Markdown table, a line per label; the header is `TABLE_HEAD`."""
    lines = []
    for label in result["labels"]:
        dice, iou = (result["scores"][label][metric] for metric in scores.OVERLAP)
        alike = [row["pixel_agreement"] for row in result["masks"][label]]
        between = statistics.defined(row["mask_dice"] for row in result["masks"][label])
        lines.append(
            " | ".join(
                (
                    f"| {' / '.join(result['titles'])}",
                    label,
                    str(dice["n"]),
                    _number(dice["mean_first"]),
                    _number(dice["mean_second"]),
                    _with_interval(dice),
                    _with_interval(iou),
                    _number(dice["largest"]),
                    f"{100 * np.mean(alike):.3f}% ({100 * min(alike):.3f}%)",
                    f"{np.mean(between):.4f} ({min(between):.4f}) |" if between else "- |",
                )
            )
        )
    return lines


TABLE_HEAD = (
    "| first / second | label | cases | Dice, first | Dice, second | difference of Dice [95%] | of IoU [95%] | "
    "largest of a case | pixels alike, mean (lowest) | Dice between the masks, mean (lowest) |",
    "|" + "---|" * 10,
)


def _number(value, sign=""):
    return "-" if value is None else f"{value:{sign}.4f}"


def _with_interval(found):
    low, high = found["interval"] or (None, None)
    return f"{_number(found['mean'], '+')} [{_number(low, '+')}, {_number(high, '+')}]"


def _require_comparable(first, second):
    for what in ("labels", "threshold"):
        _require_same(first, second, what, first.summary[what], second.summary[what])
    slices = [{row["case"]: row.get("slices") for row in run.summary["metric_per_case"]} for run in (first, second)]
    if set(slices[0]) != set(slices[1]):
        alone = sorted(set(slices[0]) ^ set(slices[1]))
        raise UserError(
            f"{first.folder} and {second.folder}: found {len(alone)} cases in only one of the two "
            f"({join_names(alone)}); expected the same cases. Sample and score the same data in both."
        )
    for case, chosen in slices[0].items():
        _require_same(first, second, f"slices of {case}", chosen, slices[1][case])


def _require_same(first, second, what, found, expected):
    if found != expected:
        raise found_expected(
            second.folder, f"{what} {expected}", f"{found}, as in {first.folder}", "Score both runs in the same way."
        )


def _differences(pairs, label, metric):
    """Statistics of one score: n, n_one_sided (cases in which one run alone has it), means, the mean
    difference with its interval and limits, the largest difference and its case, the values of all cases."""
    values = [
        (first["case"], first["metrics"][label][metric], second["metrics"][label][metric]) for first, second in pairs
    ]
    both = [row for row in values if None not in row]
    differences = [second - first for _, first, second in both]
    spread = float(np.std(differences, ddof=1)) if len(both) > 1 else None
    middle = statistics.mean(differences)
    largest = max(both, key=lambda row: abs(row[2] - row[1]), default=None)
    return {
        "n": len(both),
        "n_one_sided": sum(row[1:].count(None) == 1 for row in values),
        "mean_first": statistics.mean([row[1] for row in both]),
        "mean_second": statistics.mean([row[2] for row in both]),
        "mean": middle,
        "interval": statistics.mean_interval(differences),
        "standard_deviation": spread,
        "limits": None if spread is None else [middle - 1.96 * spread, middle + 1.96 * spread],
        "largest": abs(largest[2] - largest[1]) if largest else None,
        "largest_case": largest[0] if largest else None,
        "per_case": [{"case": case, "first": first, "second": second} for case, first, second in values],
    }


def _masks(first, second, labels):
    """{label: rows of pixel_agreement and mask_dice by case, the least alike first}."""
    truths = [Truth(row["case"], row["reference_file"], row.get("slices")) for row in first.summary["metric_per_case"]]
    found = {label: [] for label in labels}
    pairs = mask_pairs(first.folder, second.folder, truths, labels)
    for name, one, other in tqdm(
        pairs, total=len(truths), unit="case", desc="comparing masks", dynamic_ncols=True, leave=False, delay=2
    ):
        for place, label in enumerate(labels):
            found[label].append(
                {
                    "case": name,
                    "pixel_agreement": pixel_agreement(one[place], other[place]),
                    "mask_dice": count(one[place], other[place]).dice,
                }
            )
    for rows in found.values():
        rows.sort(key=lambda row: (row["mask_dice"] is None, row["mask_dice"] or 0, row["pixel_agreement"]))
    return found


def mask_pairs(first_dir, second_dir, truths, labels):
    """(case name, first mask, second mask) of every case, the scored parts, bool (K, ...).

    truths: list of `Truth`; their files are not read. Raises `UserError` as `mask_agreement`.
    """
    for folder in (first_dir, second_dir):
        require_outputs(folder, truths, (MASK,), labels)
    for truth in truths:
        paths = [output_paths(folder, truth.name, MASK, labels) for folder in (first_dir, second_dir)]
        first = read_outputs(paths[0])
        second = read_outputs(paths[1], first.shape[1:], paths[0][0])
        yield truth.name, selected(first, truth), selected(second, truth)

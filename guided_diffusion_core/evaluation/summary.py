"""Scoring of written predictions against the ground truth at its own size: nnU-Net's summary.json and more."""

import json
from collections import Counter

from tqdm import tqdm

from guided_diffusion_core.errors import join_names
from guided_diffusion_core.evaluation import calibration, scores, statistics
from guided_diffusion_core.evaluation.predictions import common_labels, find_predictions, read_scored, spacing_of
from guided_diffusion_core.results.outputs import MASK
from guided_diffusion_core.system.files import write_atomic

DEFINITIONS = {
    "case": "an image, or the selected axial slices of a patient's volume together, at the ground truth's own size",
    "mean": "over the cases with a value; of counts over all cases",
    "foreground_mean": "mean over the labels of `mean`",
    "median": "over the same cases as the mean",
    "interval": statistics.INTERVAL_RULE,
    "per_slice": "every selected axial slice of a volume is scored alone; means as over cases",
    "prediction": "where the probability file reaches the threshold; the mask file as it is where there is none",
}


def evaluate(prediction_dir, truths, threshold, surfaces=None):
    """Score all cases; returns the summary, a dict of JSON values in which None is what is not defined.

    prediction_dir: folder written by sampling (`outputs.CaseWriter`).
    truths:         list of `Truth`, see `data.list_truths`; each must have a prediction.
    threshold:      probability from which on a pixel belongs to the mask.
    surfaces:       `Surfaces` to add HD95 and NSD, or None.
    Keys of nnU-Net v2: `metric_per_case` (list with case, reference_file, prediction_file and metrics by
    label), `mean` (by label), `foreground_mean`. Added: median, interval, n_cases, n_both_empty (by label),
    per_slice (None without volumes), calibration (by label), labels, threshold, scored_from (cases by kind
    of file), protocol, definitions; and in the row of a case scored_from, and of a volume slices and per_slice.
    Raises `UserError` for missing predictions, all of them together, and for one of another size.
    """
    labels = common_labels(truths)
    sources = find_predictions(prediction_dir, truths)
    reliability = {label: calibration.Calibration() for label in labels}
    rows = []
    planes = {label: [] for label in labels}
    for truth in tqdm(truths, unit="case", desc="scoring", dynamic_ncols=True, leave=False, delay=2):
        kind, paths = sources[truth.name]
        scored = read_scored(prediction_dir, truth, kind, paths, threshold)
        spacing = spacing_of(truth, paths[0], surfaces.pixel_spacing) if surfaces else None
        row, of_slices = _score(truth, scored, surfaces, spacing, labels)
        for place, label in enumerate(labels):
            reliability[label].add(scored, place)
            planes[label] += of_slices[label] or []
        files = paths[0] if len(labels) == 1 else dict(zip(labels, paths))
        rows.append(
            {
                "case": truth.name,
                "reference_file": str(truth.path),
                "prediction_file": files,
                "scored_from": kind,
                **row,
            }
        )
    cases = {label: [row["metrics"][label] for row in rows] for label in labels}
    return {
        "foreground_mean": _foreground_mean(_by_metric(cases, statistics.mean)),
        "mean": _by_metric(cases, statistics.mean),
        "median": _by_metric(cases, statistics.median),
        "interval": _by_metric(cases, statistics.mean_interval, scores.SCORES),
        "n_cases": len(rows),
        "n_both_empty": _n_both_empty(cases),
        "labels": list(labels),
        "threshold": threshold,
        "scored_from": dict(Counter(row["scored_from"] for row in rows)),
        "protocol": "native",
        "per_slice": _slices_summary(planes),
        "calibration": {label: found.summary() for label, found in reliability.items()},
        "definitions": _definitions(surfaces),
        "metric_per_case": rows,
    }


def _score(truth, scored, surfaces, spacing, labels):
    """A case's part of a row and, by label, the scores of its slices (None for an image)."""
    adjacent = truth.slices is None or scores.are_adjacent(truth.slices)
    found = {
        label: scores.case_scores(scored.prediction[place], scored.truth[place], spacing, surfaces, adjacent)
        for place, label in enumerate(labels)
    }
    row = {"metrics": {label: whole for label, (whole, _) in found.items()}}
    if truth.slices is not None:
        row["slices"] = list(truth.slices)
        row["per_slice"] = {
            label: {metric: [plane[metric] for plane in planes] for metric in planes[0]}
            for label, (_, planes) in found.items()
        }
    return row, {label: planes for label, (_, planes) in found.items()}


def _by_metric(cases, statistic, metrics=None):
    """{label: {metric: statistic of the cases' values}}."""
    return {
        label: {
            metric: statistic([row[metric] for row in rows])
            for metric in rows[0]
            if metrics is None or metric in metrics
        }
        for label, rows in cases.items()
    }


def _foreground_mean(means):
    return {metric: statistics.mean([mean[metric] for mean in means.values()]) for metric in next(iter(means.values()))}


def _n_both_empty(cases):
    return {label: sum(map(scores.both_empty, rows)) for label, rows in cases.items()}


def _slices_summary(planes):
    """Means and medians over all slices of all volumes, or None without volumes."""
    if not any(planes.values()):
        return None
    return {
        "n_slices": len(next(iter(planes.values()))),
        "n_both_empty": _n_both_empty(planes),
        "mean": _by_metric(planes, statistics.mean),
        "median": _by_metric(planes, statistics.median),
    }


def _definitions(surfaces):
    found = scores.DEFINITIONS | DEFINITIONS | calibration.DEFINITIONS
    if surfaces:
        found |= scores.SURFACE_DEFINITIONS
        found["tolerance of NSD"] = (
            f"{surfaces.tolerance:g} mm for volumes, whose headers give the spacing; for "
            f"images with a pixel side of {surfaces.pixel_spacing:g}, in its unit"
        )
    return found


def write_summary(path, summary):
    """Write a summary as JSON, at once and whole."""
    write_atomic(path, (json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def format_table(summary):
    """The summary as text for the console: a line per case and label, the means, and what was left out."""
    labels = summary["labels"]
    rows = summary["metric_per_case"]
    metrics = [metric for metric in (*scores.OVERLAP, *scores.SURFACES) if metric in summary["mean"][labels[0]]]
    lines = [("case", "label", metrics)]
    lines += [
        (row["case"], label, [row["metrics"][label][metric] for metric in metrics]) for row in rows for label in labels
    ]
    for name in ("mean", "median"):
        lines += [(name, label, [summary[name][label][metric] for metric in metrics]) for label in labels]
    text = aligned(lines)
    for label in labels:
        low, high = summary["interval"][label]["Dice"] or (None, None)
        text.append(
            f"{label}: {summary['n_cases'] - summary['n_both_empty'][label]} cases scored at threshold "
            f"{summary['threshold']:g}; {summary['n_both_empty'][label]} with both masks empty counted apart"
            + (f"; mean Dice in [{low:.4f}, {high:.4f}], 95% bootstrap interval" if low is not None else "")
        )
    from_mask = [row["case"] for row in rows if row["scored_from"] == MASK]
    if from_mask:
        text.append(
            f"{len(from_mask)} cases without a probability file: their mask file was scored as it is "
            f"({join_names(from_mask)})"
        )
    return "\n".join(text)


def aligned(lines):
    """Lines of (text, text, cells) in columns; cells are numbers, None or short texts."""
    widths = [max(len(line[place]) for line in lines) for place in (0, 1)]
    return [
        f"{first:<{widths[0]}}  {second:<{widths[1]}}" + "".join(f"{_cell(value):>9}" for value in cells)
        for first, second, cells in lines
    ]


def _cell(value):
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4f}"

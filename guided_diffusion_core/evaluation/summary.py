"""Scoring of predictions against the ground truth in its native size: nnU-Net's summary.json and more."""

import json
from collections import Counter

from guided_diffusion_core.errors import UserError, join_names, report
from guided_diffusion_core.evaluation import calibration, scores, statistics
from guided_diffusion_core.evaluation.predictions import common_labels, find_predictions, read_scored, spacing_of
from guided_diffusion_core.results.outputs import MASK
from guided_diffusion_core.system.files import write_text
from guided_diffusion_core.system.progress import progress

ASSUMED_GRID = (
    "the prediction has no place in space (the identity as its affine, or none); its voxels were taken for those of "
    "the truth"
)
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
    """Score all cases and return the summary: a dict of JSON values, with None for undefined scores.

    prediction_dir: folder written by sampling (`outputs.CaseWriter`).
    truths:         list of `Truth`, see `data.list_truths`; each must have a prediction.
    threshold:      smallest probability of a pixel of the mask.
    surfaces:       `Surfaces` to add HD95 and NSD, or None.
    Keys of nnU-Net v2: `metric_per_case` (list with case, reference_file, prediction_file and metrics by label),
    `mean` (by label), `foreground_mean`. Further keys: median, interval, n_cases, left_out (names of cases),
    n_both_empty (by label), per_slice (None without volumes), calibration (by label), labels, threshold, scored_from
    (cases by kind of file), protocol, definitions; and in the row of a case scored_from, grid where the prediction has
    no place in space and, for a volume, slices, their orientation and per_slice.
    Raises `UserError` for missing predictions, all of them together, and for a prediction of another size. Errors of
    single cases are reported, see `errors.collecting`; such cases are then left out.
    """
    labels = common_labels(truths)
    scored = _ScoredCases(labels)
    sources = find_predictions(prediction_dir, truths)
    for truth in progress(truths, unit="case", desc="scoring", leave=False, delay=2):
        kind, paths = sources[truth.name]
        try:
            parts = read_scored(prediction_dir, truth, kind, paths, threshold)
        except UserError as error:
            report(error)
            scored.failed[truth.name] = error
            continue
        spacing = spacing_of(truth, paths[0], surfaces.pixel_spacing) if surfaces else None
        scored.add(_row(truth, kind, paths, labels), truth, parts, surfaces, spacing)
    if not scored.rows:
        raise next(iter(scored.failed.values()))
    rows = scored.rows
    cases = {label: [row["metrics"][label] for row in rows] for label in labels}
    return {
        "foreground_mean": _foreground_mean(_by_metric(cases, statistics.mean)),
        "mean": _by_metric(cases, statistics.mean),
        "median": _by_metric(cases, statistics.median),
        "interval": _by_metric(cases, statistics.mean_interval, scores.SCORES),
        "n_cases": len(rows),
        "left_out": list(scored.failed),
        "n_both_empty": _n_both_empty(cases),
        "labels": list(labels),
        "threshold": threshold,
        "scored_from": dict(Counter(row["scored_from"] for row in rows)),
        "protocol": "native",
        "per_slice": _slices_summary(scored.slices),
        "calibration": {label: found.summary() for label, found in scored.reliability.items()},
        "definitions": _definitions(surfaces),
        "metric_per_case": rows,
    }


class _ScoredCases:
    """The scores of the cases so far.

    rows:        dicts of one case each.
    failed:      case name -> `UserError` of the cases that cannot be scored.
    reliability: label -> `Calibration`.
    slices:      label -> scores of the slices of all volumes.
    """

    def __init__(self, labels):
        self.rows = []
        self.failed = {}
        self.reliability = {label: calibration.Calibration() for label in labels}
        self.slices = {label: [] for label in labels}

    def add(self, row, truth, scored, surfaces, spacing):
        """Score a case. row: names of its files. truth: `Truth`. scored: `predictions.Scored`."""
        labels = list(self.slices)
        scores_of_case, slices_of_case = _score(truth, scored, surfaces, spacing, labels)
        row |= scores_of_case
        if scored.is_assumed:
            row["grid"] = ASSUMED_GRID
        self.rows.append(row)
        for place, label in enumerate(labels):
            self.reliability[label].add(scored, place)
            self.slices[label] += slices_of_case[label] or []


def _row(truth, kind, paths, labels):
    """Return the part of a case's row that names its files."""
    return {
        "case": truth.name,
        "reference_file": str(truth.path),
        "prediction_file": paths[0] if len(labels) == 1 else dict(zip(labels, paths)),
        "scored_from": kind,
    }


def _score(truth, scored, surfaces, spacing, labels):
    """Score one case: (its part of a row, {label: scores of its slices, or None for an image})."""
    adjacent = truth.slices is None or scores.are_adjacent(truth.slices)
    metrics = {}
    slices = {}
    for place, label in enumerate(labels):
        metrics[label], slices[label] = scores.case_scores(
            scored.prediction[place], scored.truth[place], spacing, surfaces, adjacent
        )
    row = {"metrics": metrics}
    if truth.slices is not None:
        row["slices"] = list(truth.slices)
        row["orientation"] = truth.orientation
        row["per_slice"] = {label: _columns(slices[label]) for label in labels}
    return row, slices


def _columns(rows):
    """Turn a list of dicts with the same keys into a dict of lists."""
    return {metric: [row[metric] for row in rows] for metric in rows[0]}


def _by_metric(cases, statistic, metrics=None):
    """Return {label: {metric: statistic of the values of all cases}}.

    cases: {label: list of {metric: value}}. metrics: the metrics to take; None for all.
    """
    found = {}
    for label, rows in cases.items():
        columns = _columns(rows)
        wanted = [metric for metric in columns if metrics is None or metric in metrics]
        found[label] = {metric: statistic(columns[metric]) for metric in wanted}
    return found


def _foreground_mean(means):
    """Average each metric over the labels; means: {label: {metric: value}}."""
    columns = _columns(list(means.values()))
    return {metric: statistics.mean(values) for metric, values in columns.items()}


def _n_both_empty(cases):
    return {label: sum(map(scores.both_empty, rows)) for label, rows in cases.items()}


def _slices_summary(slice_scores):
    """Compute means and medians over all slices of all volumes; None without volumes."""
    if not any(slice_scores.values()):
        return None
    return {
        "n_slices": len(next(iter(slice_scores.values()))),
        "n_both_empty": _n_both_empty(slice_scores),
        "mean": _by_metric(slice_scores, statistics.mean),
        "median": _by_metric(slice_scores, statistics.median),
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
    """Write a summary as JSON."""
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def format_table(summary):
    """Format the summary for the console: a line per case and label, the means, and the cases left out."""
    labels = summary["labels"]
    rows = summary["metric_per_case"]
    metrics = [metric for metric in (*scores.OVERLAP, *scores.SURFACES) if metric in summary["mean"][labels[0]]]
    lines = [("case", "label", metrics)]
    for row in rows:
        lines += [(row["case"], label, [row["metrics"][label][metric] for metric in metrics]) for label in labels]
    for name in ("mean", "median"):
        lines += [(name, label, [summary[name][label][metric] for metric in metrics]) for label in labels]
    text = aligned(lines)
    text += [_label_line(summary, label) for label in labels]
    from_mask = [row["case"] for row in rows if row["scored_from"] == MASK]
    if from_mask:
        text.append(
            f"{len(from_mask)} cases without a probability file: their mask file was scored as it is "
            f"({join_names(from_mask)})"
        )
    assumed = [row["case"] for row in rows if "grid" in row]
    if assumed:
        text.append(f"{len(assumed)} cases: {ASSUMED_GRID} ({join_names(assumed)})")
    return "\n".join(text)


def _label_line(summary, label):
    """Say for one label how many cases were scored, and the interval of the mean Dice."""
    n_empty = summary["n_both_empty"][label]
    line = (
        f"{label}: {summary['n_cases'] - n_empty} cases scored at threshold {summary['threshold']:g}; "
        f"{n_empty} with both masks empty counted apart"
    )
    interval = summary["interval"][label]["Dice"]
    if interval:
        low, high = interval
        line += f"; mean Dice in [{low:.4f}, {high:.4f}], 95% bootstrap interval"
    return line


def aligned(lines):
    """Align lines of (text, text, cells) in columns; cells are numbers, None or short texts."""
    first_width = max(len(first) for first, _, _ in lines)
    second_width = max(len(second) for _, second, _ in lines)
    text = []
    for first, second, cells in lines:
        columns = "".join(f"{_cell(value):>9}" for value in cells)
        text.append(f"{first:<{first_width}}  {second:<{second_width}}{columns}")
    return text


def _cell(value):
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4f}"

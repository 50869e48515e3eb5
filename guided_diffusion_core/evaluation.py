"""Scoring of written predictions against the ground truth, at the ground truth's own size."""
import json
from collections import Counter

import numpy as np

from guided_diffusion_core.data.dataset import listed
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.files import require_folder, write_atomic
from guided_diffusion_core.fusion import binarize
from guided_diffusion_core.metrics import count, pixel_agreement
from guided_diffusion_core.outputs import MASK, PROBABILITY, find_output, read_output

DEFINITIONS = {
    "dice": "2 TP / (2 TP + FP + FN), per case",
    "iou": "TP / (TP + FP + FN), per case",
    "mean": "mean over the cases in which prediction or truth has foreground",
    "both_empty": "cases without foreground in prediction and truth; they have no score, are counted apart",
    "prediction": "the probability file where it reaches the threshold; the mask file as it is if there is "
                  "no probability file (scored_from)",
    "size": "the ground truth's own",
    "volume": "one case, counted over its selected axial slices together; all labels merged",
}


def evaluate(prediction_dir, truths, threshold):
    """Score all cases; returns the summary, a dict of JSON values.

    prediction_dir: folder written by sampling (`outputs.CaseWriter`).
    truths:         list of `Truth`, see `data.list_truths`; each must have a prediction.
    threshold:      probability from which on a pixel belongs to the mask.
    Keys: threshold, definitions, scored_from (number of cases by kind of file), n_cases, n_both_empty,
    mean (dice and iou; None without a case to average) and metric_per_case, a list with case,
    dice, iou, tp, fp, fn, both_empty and scored_from.
    Raises `UserError` for missing predictions, all of them together, and for one of another size.
    """
    sources = _find_predictions(prediction_dir, truths)
    rows = [_score(truth, *sources[truth.name], threshold) for truth in truths]
    scored = [row for row in rows if not row["both_empty"]]
    return {
        "threshold": threshold,
        "definitions": DEFINITIONS,
        "scored_from": dict(Counter(row["scored_from"] for row in rows)),
        "n_cases": len(rows),
        "n_both_empty": len(rows) - len(scored),
        "mean": {
            metric: float(np.mean([row[metric] for row in scored])) if scored else None
            for metric in ("dice", "iou")
        },
        "metric_per_case": rows,
    }


def mask_agreement(first_dir, second_dir, truths):
    """Share of pixels on which two written masks agree, a dict by case name; of a volume over the
    selected slices. Raises `UserError` for missing masks and for masks of different sizes.

    truths: list of `Truth`, which name the cases and the slices; their files are not read.
    """
    _require_outputs(first_dir, truths, (MASK,))
    _require_outputs(second_dir, truths, (MASK,))
    shares = {}
    for truth in truths:
        paths = [find_output(folder, truth.name, MASK) for folder in (first_dir, second_dir)]
        first, second = (read_output(path) for path in paths)
        _require_shape(paths[1], second.shape, first.shape, paths[0])
        shares[truth.name] = pixel_agreement(_selected(first, truth), _selected(second, truth))
    return shares


def write_summary(path, summary):
    """Write a summary as JSON, at once and whole."""
    write_atomic(path, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())


def format_table(summary):
    """The summary as text for the console: a line per case, the mean, and what was left out of it."""
    rows = summary["metric_per_case"]
    width = max([len("case"), len("mean"), *(len(row["case"]) for row in rows)])
    lines = [f"{'case':<{width}}    Dice     IoU"]
    lines += [f"{row['case']:<{width}}  {_cell(row['dice'])}  {_cell(row['iou'])}" for row in rows]
    mean, empty = summary["mean"], summary["n_both_empty"]
    lines.append(f"{'mean':<{width}}  {_cell(mean['dice'])}  {_cell(mean['iou'])}")
    lines.append(f"{summary['n_cases'] - empty} cases scored at threshold {summary['threshold']:g}; "
                 f"{empty} with both masks empty counted apart")
    from_mask = summary["scored_from"].get(MASK, 0)
    if from_mask:
        lines.append(f"{from_mask} cases without a probability file: their mask file was scored as it is")
    return "\n".join(lines)


def read_truth(truth):
    """A ground truth of one label as bool: (H, W), or (X, Y, Z). Raises `UserError`."""
    masks = read_truth_masks(truth)
    if len(masks) > 1:
        raise found_expected("--labels", ", ".join(truth.label_map.names), "one label", "Score one label at a time.")
    return masks[0]


def _find_predictions(prediction_dir, truths):
    """Case name -> (kind, path) of the file to score; the probability is preferred to the mask."""
    _require_outputs(prediction_dir, truths, (PROBABILITY, MASK))
    found = {}
    for truth in truths:
        kinds = ((kind, find_output(prediction_dir, truth.name, kind)) for kind in (PROBABILITY, MASK))
        found[truth.name] = next((kind, path) for kind, path in kinds if path)
    return found


def _require_outputs(folder, truths, kinds):
    """Raise one `UserError` for all cases of which a folder has no file of any of the kinds."""
    require_folder(folder, "predictions", "files written by segmentation_sample.py")
    missing = [truth.name for truth in truths
               if not any(find_output(folder, truth.name, kind) for kind in kinds)]
    if missing:
        raise UserError(
            f"predictions {str(folder)!r}: found none for {len(missing)} of {len(truths)} cases "
            f"({listed(missing)}); expected one for each case of the ground truth. Sample the missing cases.")


def _score(truth, kind, path, threshold):
    """One row of `metric_per_case`."""
    expected, values = read_truth(truth), read_output(path)
    _require_shape(path, values.shape, expected.shape, truth.path)
    prediction = binarize(values, threshold) if kind == PROBABILITY else values
    counts = count(_selected(prediction, truth), _selected(expected, truth))
    return {
        "case": truth.name, "dice": counts.dice, "iou": counts.iou, "tp": counts.tp, "fp": counts.fp,
        "fn": counts.fn, "both_empty": counts.both_empty, "scored_from": kind,
    }


def _require_shape(path, shape, expected, reference):
    if shape != expected:
        raise found_expected(path, f"size {shape}", f"{expected} as in {reference}",
                             "Sample the case again from the same data.")


def _selected(mask, truth):
    """The scored part of a mask: the selected axial slices, or all of an image."""
    return mask if truth.slices is None else mask[:, :, list(truth.slices)]


def _cell(value):
    return "     -" if value is None else f"{value:6.4f}"

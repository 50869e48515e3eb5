"""The scores of the original's `segmentation_env.py`, for comparison with published figures.

Each case is scored at 256 x 256 pixels: the mean over five thresholds of an IoU and a Dice with smoothing
terms. The result is the mean over the cases. The original scores masks that it has saved as JPEG (8 bits).
Here the probability is rounded to 8 bits too, but no JPEG is written.
"""

from collections import Counter

import numpy as np
from PIL import Image

from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.evaluation import statistics
from guided_diffusion_core.evaluation.predictions import Grid, common_labels, find_predictions, read_outputs
from guided_diffusion_core.evaluation.summary import aligned
from guided_diffusion_core.system.progress import progress

SIZE = 256
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
IOU_SMOOTHING = 1e-6
DICE_SMOOTHING = 1e-4
METRICS = ("upstream_Dice", "upstream_IoU")
DEFINITIONS = {
    "protocol": "that of the original's segmentation_env.py: not comparable with scores at one threshold",
    "upstream_Dice": "(2 I + 0.0001) / (P + T + 0.0001) with I, P, T the pixels of intersection, prediction and "
    "truth; mean over the thresholds 0.1, 0.3, 0.5, 0.7, 0.9, which both masks have to exceed",
    "upstream_IoU": "(I + 0.000001) / (U + 0.000001) with U the pixels of the union; mean over the same thresholds",
    "size": "truth and probability in 8 bits, resized to 256 x 256 (bilinear, antialiased), then divided by 255 and by "
    "the prediction's own maximum",
    "empty masks": "an all-zero prediction is divided by zero in the original, NaN, which exceeds no threshold: it "
    "counts as an empty mask, scores about 0 against a truth with foreground and 1 against an empty one",
    "mean": "over all cases",
}


def evaluate_upstream(prediction_dir, truths):
    """Score all cases by the original's rule; arguments and errors are those of `summary.evaluate`.

    Returns a dict of JSON values: metric_per_case, mean, foreground_mean, n_cases, labels, scored_from,
    protocol, definitions. Raises `UserError` also for volumes, which the original does not score.
    """
    labels = common_labels(truths)
    if any(truth.slices is not None for truth in truths):
        raise found_expected(
            "--protocol upstream",
            "volumes",
            "2D images, because the original scores nothing else",
            "Leave --protocol out.",
        )
    sources = find_predictions(prediction_dir, truths)
    rows = []
    for truth in progress(truths, unit="case", desc="scoring", leave=False, delay=2):
        kind, paths = sources[truth.name]
        metrics = _case_metrics(truth, paths, labels)
        rows.append({"case": truth.name, "reference_file": str(truth.path), "scored_from": kind, "metrics": metrics})
    mean = {label: _mean_metrics([row["metrics"][label] for row in rows]) for label in labels}
    return {
        "foreground_mean": _mean_metrics(list(mean.values())),
        "mean": mean,
        "n_cases": len(rows),
        "labels": list(labels),
        "protocol": "upstream",
        "scored_from": dict(Counter(row["scored_from"] for row in rows)),
        "definitions": DEFINITIONS,
        "metric_per_case": rows,
    }


def _case_metrics(truth, paths, labels):
    """Score one case: {label: {metric: value}}."""
    expected = read_truth_masks(truth)  # bool (K, H, W)
    predictions = read_outputs(paths, Grid(truth.path, expected.shape[1:])).astype(np.float32)
    metrics = {}
    for label, prediction, mask in zip(labels, predictions, expected.astype(np.float32)):
        dice, iou = upstream_scores(as_bytes(prediction), as_bytes(mask))
        metrics[label] = {"upstream_Dice": dice, "upstream_IoU": iou}
    return metrics


def _mean_metrics(rows):
    """Average each metric over rows of {metric: value}."""
    return {metric: statistics.mean([row[metric] for row in rows]) for metric in METRICS}


def as_bytes(picture):
    """Convert a picture in [0, 1], (H, W), to the 8-bit picture (256, 256) that the original reads."""
    stored = Image.fromarray(np.round(picture * 255).astype(np.uint8))
    return np.asarray(stored.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def upstream_scores(prediction, truth):
    """Compute (Dice, IoU) of two 8-bit pictures of one shape by the original's rule."""
    # The original divides the prediction by its own maximum, the truth by 255.
    peak = prediction.max()
    prediction = prediction / peak if peak else np.zeros(prediction.shape)
    truth = truth / 255
    dices = []
    ious = []
    for threshold in THRESHOLDS:
        first = prediction > threshold
        second = truth > threshold
        intersection = np.count_nonzero(first & second)
        union = np.count_nonzero(first | second)
        # |P| + |T| = intersection + union
        dices.append((2 * intersection + DICE_SMOOTHING) / (intersection + union + DICE_SMOOTHING))
        ious.append((intersection + IOU_SMOOTHING) / (union + IOU_SMOOTHING))
    return float(np.mean(dices)), float(np.mean(ious))


def format_upstream(summary):
    """Format the original's scores as text for the console."""
    labels = summary["labels"]
    lines = [("case", "label", ["Dice", "IoU"])]
    for row in summary["metric_per_case"]:
        lines += [(row["case"], label, list(row["metrics"][label].values())) for label in labels]
    lines += [("mean", label, list(summary["mean"][label].values())) for label in labels]
    note = (
        "by the original's protocol (--protocol upstream): mean over five thresholds at "
        "256 x 256 pixels, not comparable with scores at one threshold"
    )
    return "\n".join([*aligned(lines), note])

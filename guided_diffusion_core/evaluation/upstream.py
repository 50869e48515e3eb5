"""The score of the original's `segmentation_env.py`, so that its printed figures can be compared.

Each case at 256 x 256 pixels, the mean over five thresholds of an IoU and a Dice with smoothing terms,
and the mean over the cases. The original scores photographs of its masks (JPEG, 8 bits); the
probability is rounded to 8 bits here, but no JPEG is written.
"""

from collections import Counter

import numpy as np
from PIL import Image
from tqdm import tqdm

from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.evaluation import statistics
from guided_diffusion_core.evaluation.predictions import common_labels, find_predictions, read_outputs
from guided_diffusion_core.evaluation.summary import aligned

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
    "counts as an empty mask, scores about 0 beside a truth with foreground and 1 beside an empty one",
    "mean": "over all cases",
}


def evaluate_upstream(prediction_dir, truths):
    """The original's scores of all cases, a dict of JSON values: metric_per_case, mean, foreground_mean,
    n_cases, labels, scored_from, protocol, definitions; arguments and errors as in `summary.evaluate`.

    Raises `UserError` for volumes too, which the original does not score.
    """
    labels = common_labels(truths)
    if any(truth.slices is not None for truth in truths):
        raise found_expected(
            "--protocol upstream",
            "volumes",
            "2D images, which are all that the original scores",
            "Leave --protocol out.",
        )
    sources = find_predictions(prediction_dir, truths)
    rows = []
    for truth in tqdm(truths, unit="case", desc="scoring", dynamic_ncols=True, leave=False, delay=2):
        kind, paths = sources[truth.name]
        expected = read_truth_masks(truth)
        prediction = read_outputs(paths, expected.shape[1:], truth.path).astype(np.float32)
        pairs = zip(labels, map(as_bytes, prediction), map(as_bytes, expected.astype(np.float32)))
        found = {label: dict(zip(METRICS, upstream_scores(*pair))) for label, *pair in pairs}
        rows.append({"case": truth.name, "reference_file": str(truth.path), "scored_from": kind, "metrics": found})
    mean = {
        label: {metric: statistics.mean([row["metrics"][label][metric] for row in rows]) for metric in METRICS}
        for label in labels
    }
    return {
        "foreground_mean": {metric: statistics.mean([mean[label][metric] for label in labels]) for metric in METRICS},
        "mean": mean,
        "n_cases": len(rows),
        "labels": list(labels),
        "protocol": "upstream",
        "scored_from": dict(Counter(row["scored_from"] for row in rows)),
        "definitions": DEFINITIONS,
        "metric_per_case": rows,
    }


def as_bytes(picture):
    """A picture in [0, 1], (H, W), as the 8-bit picture (256, 256) that the original reads."""
    stored = Image.fromarray(np.round(picture * 255).astype(np.uint8))
    return np.asarray(stored.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def upstream_scores(prediction, truth):
    """(Dice, IoU) of two 8-bit pictures of one shape, by the original's rule."""
    peak = prediction.max()
    prediction = prediction / peak if peak else np.zeros(prediction.shape)
    truth = truth / 255
    dices = []
    ious = []
    for threshold in THRESHOLDS:
        first = prediction > threshold
        second = truth > threshold
        common = np.count_nonzero(first & second)
        union = np.count_nonzero(first | second)
        dices.append((2 * common + DICE_SMOOTHING) / (common + union + DICE_SMOOTHING))
        ious.append((common + IOU_SMOOTHING) / (union + IOU_SMOOTHING))
    return float(np.mean(dices)), float(np.mean(ious))


def format_upstream(summary):
    """The original's scores as text for the console."""
    rows = summary["metric_per_case"]
    labels = summary["labels"]
    lines = [("case", "label", ["Dice", "IoU"])]
    lines += [(row["case"], label, list(row["metrics"][label].values())) for row in rows for label in labels]
    lines += [("mean", label, list(summary["mean"][label].values())) for label in labels]
    return "\n".join(
        [
            *aligned(lines),
            "by the original's protocol (--protocol upstream): mean over five thresholds at "
            "256 x 256 pixels, not comparable with scores at one threshold",
        ]
    )

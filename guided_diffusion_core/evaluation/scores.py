"""The scores of one pair of masks, under nnU-Net's names and a few more."""

from dataclasses import dataclass

import numpy as np

from guided_diffusion_core.evaluation.metrics import count

# nnU-Net v2 has these; the others are added to them.
OVERLAP = ("Dice", "IoU")
COUNTS = ("TP", "FP", "FN", "TN", "n_ref", "n_pred")
RATES = ("precision", "recall", "sensitivity", "specificity")
SURFACES = ("HD95", "NSD")
SCORES = OVERLAP + RATES + SURFACES

DEFINITIONS = {
    "Dice": "2 TP / (2 TP + FP + FN)",
    "IoU": "TP / (TP + FP + FN)",
    "TP, FP, FN, TN": "pixels (voxels) by prediction and truth; n_ref = TP + FN, n_pred = TP + FP",
    "precision": "TP / (TP + FP)",
    "recall": "TP / (TP + FN)",
    "sensitivity": "the recall",
    "specificity": "TN / (TN + FP); null if the truth has no background",
    "empty masks": "prediction and truth both empty: Dice, IoU, precision, recall, sensitivity, HD95 and NSD are "
    "null, left out of every mean and counted apart (n_both_empty); one of the two empty: they are "
    "0, but HD95 is null",
}
SURFACE_DEFINITIONS = {
    "HD95": "95th percentile of the distances from the border pixels of each mask to the nearest border pixel of "
    "the other, both directions pooled (medpy.metric.binary.hd95)",
    "NSD": "share of both surfaces that lies within the tolerance of the other surface, by length or area "
    "(Nikolov et al. 2018; surface-distance, compute_surface_dice_at_tolerance)",
    "surfaces of volumes": "in three dimensions over the selected slices; null where these are not adjacent",
}


@dataclass(frozen=True)
class Surfaces:
    """How surface distances are taken.

    tolerance:     of the normalised surface distance, in the unit of the spacing.
    pixel_spacing: side of a pixel of a 2D image; volumes have the spacing of their header, in mm.
    """

    tolerance: float = 1.0
    pixel_spacing: float = 1.0


def mask_scores(prediction, truth, spacing=None, tolerance=None):
    """All scores of a pair of masks, a dict in a fixed order; a score that is not defined is None.

    prediction, truth: bool arrays of one shape, 2D or 3D. spacing: distances between pixels, one for each
    axis, and tolerance: for HD95 and NSD, which are left out without a spacing.
    """
    counts = count(prediction, truth)
    scores = {
        "Dice": counts.dice,
        "IoU": counts.iou,
        "TP": counts.tp,
        "FP": counts.fp,
        "FN": counts.fn,
        "TN": counts.tn,
        "n_ref": counts.tp + counts.fn,
        "n_pred": counts.tp + counts.fp,
        "precision": counts.precision,
        "recall": counts.recall,
        "sensitivity": counts.recall,
        "specificity": counts.specificity,
    }
    if spacing:
        from guided_diffusion_core.evaluation.surfaces import surface_scores  # whose packages take a second to import

        scores |= surface_scores(prediction, truth, spacing, tolerance)
    return scores


def case_scores(prediction, truth, spacing, surfaces, adjacent=True):
    """The scores of one label of a case: (of all of it, of its slices or None).

    prediction, truth: bool (H, W), or (X, Y, Z), whose slices are scored one by one as well.
    spacing: distances between pixels. surfaces: `Surfaces`, or None for no surface distances.
    adjacent: False if slices are left out between those of a volume: it has no surface distances then.
    """
    tolerance = surfaces and surfaces.tolerance
    whole = mask_scores(prediction, truth, spacing if surfaces and adjacent else None, tolerance)
    if surfaces and not adjacent:
        whole |= dict.fromkeys(SURFACES)
    if truth.ndim == 2:
        return whole, None
    planes = [
        mask_scores(prediction[..., z], truth[..., z], spacing[:2] if surfaces else None, tolerance)
        for z in range(truth.shape[-1])
    ]
    return whole, planes


def both_empty(scores):
    """Whether neither mask of a pair had foreground."""
    return scores["n_ref"] + scores["n_pred"] == 0


def are_adjacent(slices):
    """Whether numbers of slices, rising, leave none out."""
    return bool(np.all(np.diff(slices) == 1))

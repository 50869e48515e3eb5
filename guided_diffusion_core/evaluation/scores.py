"""The scores of one pair of masks: nnU-Net's, under its names, and a few more."""

from dataclasses import dataclass

import numpy as np

from guided_diffusion_core.evaluation.metrics import count

# nnU-Net v2 has the overlap scores and the counts (TP, FP, FN, TN, n_ref, n_pred); the others are additions.
OVERLAP = ("Dice", "IoU")
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
    """Settings of the surface distances.

    tolerance:     of the normalised surface distance, in the unit of the spacing.
    pixel_spacing: side of a pixel of a 2D image, in any unit. Volumes use the spacing of their header, in mm.
    """

    tolerance: float = 1.0
    pixel_spacing: float = 1.0


def mask_scores(prediction, truth, spacing=None, tolerance=None):
    """Compute all scores of a pair of masks: a dict in a fixed order, with None for undefined scores.

    prediction, truth: bool arrays of one shape, 2D or 3D.
    spacing:           distance between pixels along each axis; None leaves HD95 and NSD out.
    tolerance:         of the NSD, in the unit of the spacing.
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
        from guided_diffusion_core.evaluation.surfaces import surface_scores  # here, because the import takes a second

        scores |= surface_scores(prediction, truth, spacing, tolerance)
    return scores


def case_scores(prediction, truth, spacing, surfaces, adjacent=True):
    """Score one label of a case: (scores of the whole, list of the scores of its slices or None).

    prediction, truth: bool (H, W), or (X, Y, Z), whose slices are also scored one by one.
    spacing:  distance between pixels along each axis.
    surfaces: `Surfaces`, or None for no surface distances.
    adjacent: False if slices between those of a volume are missing. Its surfaces are then unknown, and HD95 and
              NSD of the whole are None.
    """
    if surfaces is None:
        tolerance = None
        whole_spacing = None
        slice_spacing = None
    else:
        tolerance = surfaces.tolerance
        whole_spacing = spacing if adjacent else None
        slice_spacing = spacing[:2]
    whole = mask_scores(prediction, truth, whole_spacing, tolerance)
    if surfaces and not adjacent:
        whole |= dict.fromkeys(SURFACES)
    if truth.ndim == 2:
        return whole, None
    slices = []
    for z in range(truth.shape[-1]):
        slices.append(mask_scores(prediction[..., z], truth[..., z], slice_spacing, tolerance))
    return whole, slices


def both_empty(scores):
    """Return True if neither mask of a pair had foreground."""
    return scores["n_ref"] + scores["n_pred"] == 0


def are_adjacent(slices):
    """Return True if rising slice numbers have no gap."""
    return bool(np.all(np.diff(slices) == 1))

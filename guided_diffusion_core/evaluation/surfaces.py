"""Distances between the surfaces of two masks, by MedPy and by DeepMind's surface-distance."""

import warnings

import numpy as np
import surface_distance
from medpy.metric.binary import hd95
from scipy import ndimage


def surface_scores(prediction, truth, spacing, tolerance):
    """Compute HD95 and NSD of two bool masks (2D or 3D) of one shape; `scores` has the definitions.

    spacing: distance between pixels along each axis. tolerance: of the NSD, in the same unit.
    Returns a dict. If both masks are empty, both scores are None; if one is, HD95 is None and NSD is 0.
    """
    if not prediction.any() and not truth.any():
        return {"HD95": None, "NSD": None}
    if not prediction.any() or not truth.any():
        return {"HD95": None, "NSD": 0.0}
    # Only the box around both masks matters: what lies outside changes no distance but costs time.
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]
    prediction = prediction[box]
    truth = truth[box]
    with warnings.catch_warnings():
        # surface-distance calls scipy functions by names that are deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        distances = surface_distance.compute_surface_distances(truth, prediction, spacing)
    nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
    return {"HD95": float(hd95(prediction, truth, spacing)), "NSD": float(nsd)}

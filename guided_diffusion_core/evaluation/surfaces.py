"""Distances between the surfaces of two masks, by MedPy and by DeepMind's surface-distance."""

import warnings

import numpy as np
import surface_distance
from medpy.metric.binary import hd95
from scipy import ndimage


def surface_scores(prediction, truth, spacing, tolerance):
    """HD95 and NSD of two bool masks (2D or 3D) of one shape, a dict; the definitions are in `scores`.

    spacing: distances between pixels, one for each axis. tolerance: of the NSD, in the same unit.
    With both masks empty both are None; with one empty HD95 is None and NSD 0.
    """
    if not prediction.any() and not truth.any():
        return {"HD95": None, "NSD": None}
    if not prediction.any() or not truth.any():
        return {"HD95": None, "NSD": 0.0}
    # what lies outside the box around both masks changes no distance, but costs the time of the whole volume
    box = ndimage.find_objects((prediction | truth).astype(np.uint8))[0]
    prediction = prediction[box]
    truth = truth[box]
    with warnings.catch_warnings():
        # surface-distance calls scipy by names that scipy will give up
        warnings.simplefilter("ignore", DeprecationWarning)
        distances = surface_distance.compute_surface_distances(truth, prediction, spacing)
    nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
    return {"HD95": float(hd95(prediction, truth, spacing)), "NSD": float(nsd)}

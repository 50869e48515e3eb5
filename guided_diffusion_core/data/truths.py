"""Reading a case's ground truth, whatever its layout."""

import numpy as np

from guided_diffusion_core.data.formats.images import read_masks
from guided_diffusion_core.data.formats.volumes import read_plane, read_volume


def read_truth_masks(truth):
    """The masks of a `Truth`: bool (K, H, W) of an image, (K, X, Y, Z) of a volume.

    Slices of a volume without a file of their own are empty.
    Raises `UserError` for a broken file and for values that the label map does not know.
    """
    if truth.slices is None:
        return read_masks(truth.path, truth.label_map)
    if truth.planes is None:
        return truth.label_map.masks(read_volume(truth.path), truth.path)
    masks = None
    for z, path in truth.planes:
        plane = truth.label_map.masks(read_plane(path), path)  # (K, X, Y)
        if masks is None:
            masks = np.zeros((*plane.shape, truth.planes[-1][0] + 1), bool)
        masks[..., z] = plane
    return masks

"""Read the ground truth of a case of any layout."""

import numpy as np

from guided_diffusion_core.data.formats.masks import read_masks
from guided_diffusion_core.data.formats.volumes import read_plane, read_with_geometry


def read_truth_masks(truth):
    """Return the masks of a `Truth`: bool (K, H, W) for an image, (K, X, Y, Z) for a volume in its orientation.

    If a volume has one file per slice, slices without a file are empty.
    Raises `UserError` for a broken file and for values that the label map does not know.
    """
    if truth.slices is None:
        return read_masks(truth.path, truth.label_map)
    if truth.planes is None:
        values, geometry = read_with_geometry(truth.path)
        return geometry.turn_to(truth.orientation).apply(truth.label_map.masks(values, truth.path))
    last_slice, _ = truth.planes[-1]
    masks = None
    for z, path in truth.planes:
        plane = truth.label_map.masks(read_plane(path), path)  # (K, X, Y)
        if masks is None:
            masks = np.zeros((*plane.shape, last_slice + 1), bool)  # (K, X, Y, Z)
        masks[..., z] = plane
    return masks

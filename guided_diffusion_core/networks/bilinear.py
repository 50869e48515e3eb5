"""Bilinear resizing along one axis as a matrix."""

import numpy as np


def bilinear_matrix(length, size):
    """Return the matrix (length, size) by which values at `length` pixels are interpolated at `size` pixels.

    Pixel centres are aligned: output k lies at (k + 1/2) length / size - 1/2, within the image. float64.
    """
    places = ((np.arange(size) + 0.5) * length / size - 0.5).clip(0, length - 1)
    distances = np.abs(np.arange(length)[:, None] - places)  # (length, size)
    return (1 - distances).clip(0)

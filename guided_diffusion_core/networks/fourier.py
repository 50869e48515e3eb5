"""The orthonormal Fourier transform of real images as two products with real matrices."""

from functools import lru_cache

import numpy as np


def _angles(length, frequencies):
    """Return 2 pi x k / length for the places x < length and k < frequencies: (length, frequencies)."""
    # The remainder keeps the digits of large products.
    return 2 * np.pi / length * (np.outer(np.arange(length), np.arange(frequencies)) % length)


@lru_cache(maxsize=16)
def row_transform(width):
    """Return the transform of a real row: (width, 2 K) float64, with K = width // 2 + 1 frequencies.

    A row times this matrix is its half spectrum, the K real parts and then the K imaginary ones.
    """
    angles = _angles(width, width // 2 + 1)
    return np.concatenate([np.cos(angles), -np.sin(angles)], axis=1) / np.sqrt(width)


@lru_cache(maxsize=16)
def column_transform(height):
    """Return the transform of a complex column: (2 height, 2 height) float64, real parts before imaginary ones.

    The matrix is orthogonal: its transpose is the inverse transform.
    """
    angles = _angles(height, height)
    cosines = np.cos(angles)
    sines = np.sin(angles)
    # (a + i b) (cos - i sin) = (a cos + b sin) + i (b cos - a sin)
    return np.block([[cosines, -sines], [sines, cosines]]) / np.sqrt(height)


def multiplicity(width):
    """Return how often each of the width // 2 + 1 frequencies of a real row's half spectrum stands in the whole one:
    once if it is its own conjugate, otherwise twice; float64."""
    count = np.full(width // 2 + 1, 2.0)
    # Frequency 0, and the highest one of an even width.
    count[[0, -1] if width % 2 == 0 else 0] = 1
    return count


@lru_cache(maxsize=16)
def row_inverse(width):
    """Return the inverse transform of a half spectrum to a real row: (2 K, width) float64.

    A frequency that is its own conjugate keeps only its real part.
    """
    return np.tile(multiplicity(width), 2)[:, None] * row_transform(width).T

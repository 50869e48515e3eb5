"""Frequencies of the sinusoidal time embedding."""

import math

import numpy as np


def timestep_frequencies(dim, dtype, max_period=10000):
    """Angular frequencies of the embedding of Vaswani et al. 2017 (arXiv:1706.03762, section 3.5)
    as guided diffusion arranges it: max_period ** (-k / half), k = 0 ... half - 1.

    dim:   width of the embedding; half = dim // 2.
    dtype: numpy dtype. The exponent is rounded to it in each step, as the original does: a last
           bit of a frequency is 1e-4 radians at time step 1000.
    Returns (half,) of that dtype.
    """
    half = dim // 2
    exponent = np.arange(half, dtype=dtype) * np.array(-math.log(max_period), dtype) / np.array(half, dtype)
    return np.exp(exponent.astype(np.float64)).astype(dtype)

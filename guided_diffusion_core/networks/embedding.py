"""Frequencies of the sinusoidal time embedding."""

import math

import numpy as np


# f_k = max_period^(-k / half) for k = 0 ... half - 1 (Vaswani et al. 2017, arXiv:1706.03762, section 3.5), in the order
# of guided diffusion
def timestep_frequencies(dim, dtype, max_period=10000):
    """Return the angular frequencies of the sinusoidal time embedding, (half,) of a dtype.

    dim:        width of the embedding; half = dim // 2.
    dtype:      numpy dtype. Each step of the exponent is rounded to it, as in the original: the last bit of a frequency
                is 1e-4 radians at time step 1000.
    max_period: longest period, divided by 2 pi.
    """
    half = dim // 2
    exponent = np.arange(half, dtype=dtype) * np.array(-math.log(max_period), dtype) / np.array(half, dtype)
    return np.exp(exponent.astype(np.float64)).astype(dtype)

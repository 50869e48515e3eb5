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


def sine_frequencies(dim, precision):
    """Return the frequencies 10000^(-j / (dim / 2 - 1)), j < dim / 2, of the paper's embedding of time steps.

    dim: even width of the embedding. precision: "float32" or "float64", in which the exponents are rounded, as in
    lucidrains' package: with time steps near 1000 the last digit of a frequency shows.
    """
    half = dim // 2
    step = np.asarray(-math.log(10000) / (half - 1), precision)
    exponent = np.arange(half, dtype=precision) * step
    return np.exp(exponent.astype(np.float64)).astype(precision)

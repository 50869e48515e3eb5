"""Likelihoods of Gaussians, element by element, in nats."""

import math

from guided_diffusion_jt import runtime
from guided_diffusion_jt.runtime import jt


def normal_kl(mean1, logvar1, mean2, logvar2):
    """Kullback-Leibler divergence of N(mean2, exp(logvar2)) from N(mean1, exp(logvar1)).

    Four tensors whose shapes broadcast; returns that shape, values of at least 0.
    """
    difference = mean1 - mean2
    return 0.5 * (logvar2 - logvar1 - 1.0 + jt.exp(logvar1 - logvar2) + difference * difference * jt.exp(-logvar2))


def approx_standard_normal_cdf(x):
    """Standard normal distribution function by its tanh approximation (Page 1977), within 2e-4."""
    cubic = x + runtime.scalar(0.044715) * (x * x * x)
    return 0.5 * (1.0 + jt.tanh(runtime.scalar(math.sqrt(2.0 / math.pi)) * cubic))


def discretized_gaussian_log_likelihood(x, *, means, log_scales):
    """Log-likelihood of values on a grid of width 2/255 in [-1, 1] (DDPM, arXiv:2006.11239, eq. 13).

    x:          values in [-1, 1]; the outermost bins reach to infinity.
    means:      of the Gaussian. log_scales: logarithm of its standard deviation.
    All of one shape, which is returned; probabilities below 1e-12 count as 1e-12, with no gradient.
    """
    centred = x - means
    half_bin = runtime.scalar(1.0 / 255.0)
    inverse_scale = jt.exp(-log_scales)
    cdf_above = approx_standard_normal_cdf(inverse_scale * (centred + half_bin))
    cdf_below = approx_standard_normal_cdf(inverse_scale * (centred - half_bin))
    probability = jt.where(x < -0.999, cdf_above, jt.where(x > 0.999, 1.0 - cdf_below, cdf_above - cdf_below))
    return jt.log(probability.clamp(1e-12))

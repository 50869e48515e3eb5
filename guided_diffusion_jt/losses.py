"""Divergence and likelihood of Gaussians, for each element, in nats."""

import math

from guided_diffusion_jt import runtime
from guided_diffusion_jt.runtime import jt


# KL(N(m1, v1) || N(m2, v2)) = (log v2 - log v1 - 1 + v1 / v2 + (m1 - m2)^2 / v2) / 2
def normal_kl(mean1, logvar1, mean2, logvar2):
    """Return the Kullback-Leibler divergence KL(N(mean1, exp(logvar1)) || N(mean2, exp(logvar2))).

    The shapes of the four tensors broadcast; the result has the common shape and values of at least 0.
    """
    difference = mean1 - mean2
    return 0.5 * (logvar2 - logvar1 - 1.0 + jt.exp(logvar1 - logvar2) + difference * difference * jt.exp(-logvar2))


# P(X <= x) ~ (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (Page 1977)
def approx_standard_normal_cdf(x):
    """Return the standard normal distribution function of x by its tanh approximation, within 2e-4."""
    cubic = x + runtime.scalar(0.044715) * (x * x * x)
    return 0.5 * (1.0 + jt.tanh(runtime.scalar(math.sqrt(2.0 / math.pi)) * cubic))


# log of the integral of N(y; means, exp(log_scales)^2) dy over the bin x - 1/255 < y < x + 1/255
# (Ho et al. 2020, arXiv:2006.11239, eq. 13)
def discretized_gaussian_log_likelihood(x, *, means, log_scales):
    """Return the log-likelihood of values on a grid of width 2/255 in [-1, 1].

    x:          values in [-1, 1]; the outermost bins reach to infinity.
    means:      means of the Gaussians.
    log_scales: logarithms of their standard deviations.

    All three have one shape, which is that of the result. Probabilities below 1e-12 count as 1e-12, without a
    gradient.
    """
    centred = x - means
    half_bin = runtime.scalar(1.0 / 255.0)
    inverse_scale = jt.exp(-log_scales)
    cdf_above = approx_standard_normal_cdf(inverse_scale * (centred + half_bin))
    cdf_below = approx_standard_normal_cdf(inverse_scale * (centred - half_bin))
    # The highest bin has no upper limit, the lowest one no lower limit.
    at_most_one = jt.where(x > 0.999, 1.0 - cdf_below, cdf_above - cdf_below)
    probability = jt.where(x < -0.999, cdf_above, at_most_one)
    return jt.log(probability.clamp(1e-12))

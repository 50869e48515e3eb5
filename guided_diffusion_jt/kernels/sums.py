"""Sums and means of many values, in stages: one long float32 sum loses digits."""

from guided_diffusion_jt import runtime

LENGTH = 256  # values per partial sum


def sum_last(x):
    """Return the sum over the last axis: (..., M) to (..., 1). It has two stages where M allows it."""
    length = x.shape[-1]
    if length % LENGTH == 0:
        # (..., M) to (..., M / 256, 256) to the partial sums (..., M / 256)
        x = x.reshape(*x.shape[:-1], length // LENGTH, LENGTH).sum(-1)
    return x.sum(-1, keepdims=True)


def mean_last(x):
    """Return the mean over the last axis: (..., M) to (..., 1).

    The gradient of Jittor's own mean rounds 1 / M to float32, in float64 too.
    """
    return sum_last(x) / runtime.scalar(x.shape[-1])

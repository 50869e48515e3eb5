"""Fusion of an ensemble of sampled masks into one probability and its uncertainty."""
import numpy as np


def fuse_mean(members):
    """Mean and standard deviation of an ensemble.

    members: (M, ...) sampled masks; values outside [0, 1] are clipped first, because a sample is a
             noisy estimate of a mask of 0 and 1.
    Returns (probability, uncertainty), each float32 (...): the mean in [0, 1], and the population
    standard deviation (divisor M) in [0, 0.5].
    """
    members = np.clip(np.asarray(members, np.float64), 0.0, 1.0)
    return members.mean(axis=0).astype(np.float32), members.std(axis=0).astype(np.float32)


def binarize(probability, threshold):
    """Mask of the pixels whose probability reaches the threshold; bool."""
    return np.asarray(probability, np.float32) >= np.float32(threshold)

"""The interface of a process between masks and noise: its numbers, in numpy float64.

A process mixes the mask x_0 and standard normal noise linearly. The prediction of a network is linear in both,
too, so that x_0 follows from x_t and the prediction. Training and sampling use nothing else of a process;
`solvers.py` has the steps of the samplers.
"""

from typing import Protocol

import numpy as np

from guided_diffusion_core.diffusion.schedule import ModelVarType


class Process(Protocol):
    """The path from a mask to noise, x_t = a x_0 + b noise, and the quantity that a network predicts on it.

    Each process has its own kind of times: the Gaussian process has the indices of its steps, another one may have
    numbers from 0 to 1. All methods take and return numpy arrays with an entry for each time.
    """

    # The variance of an ancestral step. A learned one comes from the network, in further channels of its output.
    model_var_type: ModelVarType

    def times(self, steps):
        """Return the times of a sampler with `steps` intervals, descending; after the last one comes x_0.

        steps: number of intervals; 0 for one per step of the process. Raises `UserError` for a number that the process
        cannot give.
        """

    def draw(self, uniforms):
        """Return (times, importance) of training examples: (N,) each, from values (N,) of U[0, 1).

        The importance weighs the losses: their weighted mean estimates the mean over evenly drawn times.
        """

    def mix(self, t):
        """Return (a, b) of x_t = a x_0 + b noise at times t (N,)."""

    def target(self, t):
        """Return (c, d) of the network's prediction c x_0 + d noise at times t (N,)."""

    def network_time(self, t):
        """Return the network's time input for times t (N,): whole numbers or floats, about 0 to 1000."""

    def noise_step(self, t):
        """Return the whole numbers that are the `step` of the noise tape at times t (N,)."""


def xstart_coefficients(process, t):
    """Return (x_t_coef, prediction_coef), float64 (N,), of x_0 = x_t_coef x_t + prediction_coef prediction.

    They solve x_t = a x_0 + b noise and prediction = c x_0 + d noise for x_0. Example: a network that predicts
    the noise has c = 0 and d = 1, so that x_0 = x_t / a - b / a prediction (DDPM, eq. 4).
    """
    a, b = process.mix(t)
    c, d = process.target(t)
    # Cramer's rule for two equations in x_0 and noise
    determinant = a * d - b * c
    return d / determinant, -b / determinant


def end_points(process, times):
    """Return (a, b, a_next, b_next), float64 (S,): the mixtures at the start and the end of each step.

    times: (S,) descending. The last step ends at x_0, where a = 1 and b = 0.
    """
    a, b = process.mix(times)
    return a, b, np.append(a[1:], 1.0), np.append(b[1:], 0.0)

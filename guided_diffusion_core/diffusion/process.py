"""What a process between masks and noise has to say: numbers, in numpy float64.

A process is linear in the mask x_0 and standard normal noise. What a network predicts is linear in both,
too, so that x_0 follows from the prediction. Training and sampling know nothing else of a process; how its
samplers step is in `solvers.py`.
"""

from typing import Protocol

import numpy as np

from guided_diffusion_core.diffusion.schedule import ModelVarType


class Process(Protocol):
    """The path from a mask to noise, x_t = a x_0 + b noise, and what a network predicts on it.

    Times are whatever the process takes for them: the indices of the Gaussian process, or numbers from 0 to
    1. All methods take and return numpy arrays with an entry for each time.
    """

    # The variance of an ancestral step. A learned one comes from the network, in further channels of its output.
    model_var_type: ModelVarType

    def times(self, steps):
        """Return the times of a sampler with `steps` intervals, descending; after the last one comes x_0.

        steps: 0 for as many as there are. Raises `UserError` for a number that the process cannot give.
        """

    def draw(self, uniforms):
        """Return (times, importance) of training examples: (N,) each, from values (N,) of U[0, 1).

        The importance weighs the losses so that their mean is that over evenly drawn times.
        """

    def mix(self, t):
        """Return (a, b) of x_t = a x_0 + b noise at times t (N,)."""

    def target(self, t):
        """Return (c, d) of the network's prediction c x_0 + d noise at times t (N,)."""

    def network_time(self, t):
        """Return what the network is given for times t (N,): whole numbers or floats, about 0 to 1000."""

    def noise_step(self, t):
        """Return the whole numbers under which the noise tape keeps the noise of times t (N,)."""


def xstart_coefficients(process, t):
    """Return (x_t_coef, prediction_coef), float64 (N,), of x_0 = x_t_coef x_t + prediction_coef prediction.

    They solve x_t = a x_0 + b noise and prediction = c x_0 + d noise for x_0. Example: a network that predicts
    the noise has c = 0 and d = 1, so that x_0 = x_t / a - b / a prediction (DDPM, eq. 4).
    """
    a, b = process.mix(t)
    c, d = process.target(t)
    determinant = a * d - b * c
    return d / determinant, -b / determinant


def end_points(process, times):
    """Return (a, b, a_next, b_next), float64 (S,): the mixtures at the start and the end of each step.

    times: (S,) descending. The last step ends at x_0, where a = 1 and b = 0.
    """
    a, b = process.mix(times)
    return a, b, np.append(a[1:], 1.0), np.append(b[1:], 0.0)

"""How training chooses its time steps."""
import abc

import numpy as np

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.schedule import choose_timesteps
from guided_diffusion_jt import runtime


class ScheduleSampler(abc.ABC):
    """A distribution over the time steps of a diffusion, meant to lower the variance of the
    objective; importance weights keep its mean (Improved DDPM, arXiv:2102.09672, section 3.3)."""

    @abc.abstractmethod
    def weights(self):
        """One positive number per time step, float64 (T,); they need not sum to 1."""

    def sample(self, uniforms):
        """Draw time steps.

        uniforms: (N,) values of U[0, 1), one per example.
        Returns (t, weights): (N,) integer time step indices, and (N,) float64 factors of the losses.
        """
        indices, weights = choose_timesteps(self.weights(), uniforms)
        return runtime.to_tensor(indices), runtime.to_tensor(weights)


class UniformSampler(ScheduleSampler):
    """All time steps of `diffusion` alike; every importance weight is 1."""

    def __init__(self, diffusion):
        self.num_timesteps = diffusion.num_timesteps

    def weights(self):
        return np.ones(self.num_timesteps)


def create_named_schedule_sampler(name, diffusion):
    """The sampler of that name ("uniform") for a `GaussianDiffusion`. Raises `UserError` for another."""
    if name == "uniform":
        return UniformSampler(diffusion)
    raise found_expected("--schedule_sampler", repr(name), "uniform", "Choose it.")

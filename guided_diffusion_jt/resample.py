"""How training chooses its time steps."""

import abc

import numpy as np

from guided_diffusion_core.diffusion.loss_history import LossHistory
from guided_diffusion_core.diffusion.schedule import choose_timesteps
from guided_diffusion_core.errors import found_expected
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

    def update_with_losses(self, ts, losses):
        """Take note of an optimizer step: numpy (N,) time steps and losses of its whole batch, unweighted."""

    def state(self):
        """Name -> numpy array of what the losses have changed, for a checkpoint."""
        return {}

    def restore(self, arrays):
        """Go on from what `state` returned."""


class UniformSampler(ScheduleSampler):
    """All time steps of `diffusion` alike; every importance weight is 1."""

    def __init__(self, diffusion):
        self.num_timesteps = diffusion.num_timesteps

    def weights(self):
        return np.ones(self.num_timesteps)


class LossAwareSampler(ScheduleSampler):
    """A distribution that follows the losses of the training."""

    def update_with_losses(self, ts, losses):
        self.update_with_all_losses(ts, losses)

    @abc.abstractmethod
    def update_with_all_losses(self, ts, losses):
        """Change the weights by the losses (N,) of time steps ts (N,), numpy: the same in all processes."""


class LossSecondMomentResampler(LossAwareSampler):
    """Time steps by the root of their mean squared loss (Improved DDPM, section 3.3, eq. 18), once each has
    `history_per_term` losses; uniform until then.

    diffusion:    the process. history_per_term: losses of a time step that count, its last ones.
    uniform_prob: share of the draws that stays uniform, so that no time step is forgotten.
    """

    def __init__(self, diffusion, history_per_term=10, uniform_prob=0.001):
        self.history = LossHistory(diffusion.num_timesteps, history_per_term)
        self.uniform_prob = uniform_prob

    def weights(self):
        return self.history.weights(self.uniform_prob)

    def update_with_all_losses(self, ts, losses):
        self.history.update(ts, losses)

    def state(self):
        return {"losses": self.history.losses.copy(), "counts": self.history.counts.copy()}

    def restore(self, arrays):
        self.history.losses = arrays["losses"].copy()
        self.history.counts = arrays["counts"].copy()


SAMPLERS = {"uniform": UniformSampler, "loss-second-moment": LossSecondMomentResampler}


def create_named_schedule_sampler(name, diffusion):
    """The sampler of that name ("uniform" or "loss-second-moment") for a `GaussianDiffusion`.

    Raises `UserError` for another name.
    """
    if name not in SAMPLERS:
        raise found_expected("--schedule_sampler", repr(name), " or ".join(SAMPLERS), "Choose one of them.")
    return SAMPLERS[name](diffusion)

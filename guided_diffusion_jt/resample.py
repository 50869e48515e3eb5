"""Distributions from which training draws its time steps."""

import abc

import numpy as np

from guided_diffusion_core.diffusion.loss_history import LossHistory
from guided_diffusion_core.diffusion.schedule import choose_timesteps
from guided_diffusion_core.errors import found_expected
from guided_diffusion_jt import runtime


class ScheduleSampler(abc.ABC):
    """A distribution over the time steps of a diffusion that lowers the variance of the objective.

    Importance weights keep the mean of the objective (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.3).
    """

    @abc.abstractmethod
    def weights(self):
        """Return one positive number per time step, float64 (T,). The sum need not be 1."""

    def draw(self, uniforms):
        """Draw a time step for each example.

        uniforms: (N,) values of U[0, 1), one per example.
        Returns numpy (t, weights), both (N,): integer time step indices, and float64 factors of the losses.
        """
        return choose_timesteps(self.weights(), uniforms)

    def sample(self, uniforms):
        """Draw as `draw`, and return tensors."""
        t, weights = self.draw(uniforms)
        return runtime.to_tensor(t), runtime.to_tensor(weights)

    def update_with_losses(self, ts, losses):
        """Record an optimizer step.

        ts:     numpy (N,), time steps of its whole batch.
        losses: numpy (N,), their losses without weights.
        """

    def state(self):
        """Return name -> numpy array of all values that the losses have changed, for a checkpoint."""
        return {}

    def restore(self, arrays):
        """Continue from the arrays that `state` returned."""


class UniformSampler(ScheduleSampler):
    """All times of a process alike, whether they are time steps or not (`Process.draw`)."""

    def __init__(self, diffusion):
        self.process = diffusion

    def weights(self):
        return np.ones(self.process.num_timesteps)

    def draw(self, uniforms):
        """Draw times (N,) and their weights (N,)."""
        return self.process.draw(uniforms)


class LossAwareSampler(ScheduleSampler):
    """A distribution that follows the losses of the training."""

    def update_with_losses(self, ts, losses):
        self.update_with_all_losses(ts, losses)

    @abc.abstractmethod
    def update_with_all_losses(self, ts, losses):
        """Change the weights by the losses (N,) of time steps ts (N,), numpy; all processes get the same ones."""


class LossSecondMomentResampler(LossAwareSampler):
    """Time steps drawn by the root of their mean squared loss: p_t ~ sqrt(E[L_t^2]) (Nichol & Dhariwal 2021,
    arXiv:2102.09672, eq. 18).

    diffusion:        process with its `num_timesteps`.
    history_per_term: number of last losses of each time step that count. The distribution is uniform until every
                      time step has this number.
    uniform_prob:     share of the draws that stays uniform, so that every time step is drawn again.
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
    """Build the sampler of a name, "uniform" or "loss-second-moment", for a `GaussianDiffusion`.

    Raises `UserError` for another name.
    """
    if name not in SAMPLERS:
        raise found_expected("--schedule_sampler", repr(name), " or ".join(SAMPLERS), "Choose one of them.")
    return SAMPLERS[name](diffusion)

"""What a loss-aware choice of time steps remembers (Improved DDPM, arXiv:2102.09672, section 3.3)."""

import numpy as np


class LossHistory:
    """The last losses of every time step of a process.

    num_timesteps: T. history_per_term: how many losses of a time step are kept.
    losses: float64 (T, history_per_term), the oldest first. counts: int64 (T,), how many of them are there.
    """

    def __init__(self, num_timesteps, history_per_term):
        self.losses = np.zeros((num_timesteps, history_per_term))
        self.counts = np.zeros(num_timesteps, np.int64)

    def update(self, ts, losses):
        """Remember the losses (N,) at time steps ts (N,), in this order; the oldest ones make room."""
        for t, loss in zip(np.asarray(ts), np.asarray(losses, np.float64)):
            if self.counts[t] < self.losses.shape[1]:
                self.losses[t, self.counts[t]] = loss
                self.counts[t] += 1
            else:
                self.losses[t] = np.append(self.losses[t, 1:], loss)

    def is_full(self):
        """Whether every time step has its number of losses."""
        return bool((self.counts == self.losses.shape[1]).all())

    def weights(self, uniform_prob):
        """Probability of each time step, float64 (T,), proportional to the root of the mean squared loss (eq. 18)
        for a share 1 - uniform_prob of the draws and uniform for the rest; all 1 until the history is full.
        """
        steps = len(self.counts)
        if not self.is_full():
            return np.ones(steps)
        roots = np.sqrt(np.mean(self.losses**2, axis=1))
        if not roots.any():
            return np.ones(steps)
        return (1.0 - uniform_prob) * roots / roots.sum() + uniform_prob / steps

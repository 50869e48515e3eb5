"""The losses from which training chooses its time steps (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.3)."""

import numpy as np


class LossHistory:
    """The last losses of every time step of a process.

    num_timesteps:    T.
    history_per_term: number of losses that are kept of each time step.

    Attributes: losses, float64 (T, history_per_term), the oldest first; counts, int64 (T,), the number of losses that
    each time step has.
    """

    def __init__(self, num_timesteps, history_per_term):
        self.losses = np.zeros((num_timesteps, history_per_term))
        self.counts = np.zeros(num_timesteps, np.int64)

    def update(self, ts, losses):
        """Add the losses (N,) of time steps ts (N,), in this order. The oldest ones are dropped."""
        for t, loss in zip(np.asarray(ts), np.asarray(losses, np.float64)):
            if self.counts[t] < self.losses.shape[1]:
                self.losses[t, self.counts[t]] = loss
                self.counts[t] += 1
            else:
                self.losses[t] = np.append(self.losses[t, 1:], loss)

    def is_full(self):
        """Return whether every time step has its number of losses."""
        return bool((self.counts == self.losses.shape[1]).all())

    def weights(self, uniform_prob):
        """Return the weight of each time step, float64 (T,): probabilities, or 1 until the history is full.

        The probabilities are (1 - uniform_prob) p_t + uniform_prob / T, with p_t proportional to the root of the mean
        squared loss (eq. 18).
        """
        steps = len(self.counts)
        if not self.is_full():
            return np.ones(steps)
        roots = np.sqrt(np.mean(self.losses**2, axis=1))
        if not roots.any():  # all losses are 0: nothing tells the time steps apart
            return np.ones(steps)
        return (1.0 - uniform_prob) * roots / roots.sum() + uniform_prob / steps

"""The random numbers of examples in a training step."""

import numpy as np


class BatchDraws:
    """The random numbers of a method, which are drawn from the noise tape for each example.

    tape:  `NoiseTape`.
    step:  number of the optimizer step.
    slots: (N,) indices of the examples in the whole batch.
    ahead: site -> numpy (N, *shape), the values that the loader's processes have drawn already (`TrainingStream`).

    Example: `draws.normal("train/noise", (1, 64, 64))` for two examples has the shape (2, 1, 64, 64).
    """

    def __init__(self, tape, step, slots, ahead=None):
        self.tape = tape
        self.step = step
        self.slots = slots
        self.ahead = ahead or {}

    def uniform(self, site):
        """Draw one value of U[0, 1) for each example: float64 (N,)."""
        return np.array([float(self.tape.uniform(site, step=self.step, case=slot)) for slot in self.slots])

    def normal(self, site, shape):
        """Draw standard normal values for each example: float32 (N, *shape)."""
        if site in self.ahead:
            return self.ahead[site]
        return self.tape.normal_batch(site, shape, step=self.step, cases=self.slots)

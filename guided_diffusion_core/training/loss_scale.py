"""The factor that keeps small gradients from vanishing in float16 (Micikevicius et al. 2018, arXiv:1710.03740,
section 3.2)."""

import numpy as np

from guided_diffusion_core.errors import UserError

INITIAL = 2.0**16
GROWTH_STEPS = 2000


class LossScale:
    """A power of two by which the loss is multiplied and its gradients are divided again.

    It doubles after `GROWTH_STEPS` steps in a row with finite gradients; at others the optimizer leaves the
    step out and it is halved.

    Attributes: factor, at least 1; good_steps, finite ones in a row; skipped, all that were left out.
    """

    def __init__(self):
        self.factor = INITIAL
        self.good_steps = 0
        self.skipped = 0

    def update(self, finite):
        """Note whether a step's gradients are finite, which it returns.

        Raises `UserError` where they are not even with a factor of 1.
        """
        if finite:
            self.good_steps += 1
            if self.good_steps == GROWTH_STEPS:
                self.factor = 2 * self.factor
                self.good_steps = 0
        elif self.factor == 1:
            raise UserError(
                "training: gradients leave the range of float16 whatever the loss is multiplied by; "
                "expected finite ones. Use --mixed_precision bf16, or lower --lr."
            )
        else:
            self.factor = self.factor / 2
            self.good_steps = 0
            self.skipped = self.skipped + 1
        return finite

    def state(self):
        """Name -> numpy array, what `restore` takes."""
        return {
            "factor": np.array(self.factor),
            "good_steps": np.array(self.good_steps),
            "skipped": np.array(self.skipped),
        }

    def restore(self, state):
        """Go on from what `state` returned."""
        self.factor = float(state["factor"])
        self.good_steps = int(state["good_steps"])
        self.skipped = int(state["skipped"])

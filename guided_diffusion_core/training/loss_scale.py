"""The scale of the loss in float16.

A large factor keeps small gradients from vanishing (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).
"""

import numpy as np

from guided_diffusion_core.errors import UserError

INITIAL = 2.0**16
GROWTH_STEPS = 2000


class LossScale:
    """A power of two by which the loss is multiplied, and its gradients are divided.

    It doubles after `GROWTH_STEPS` steps in a row with finite gradients. It halves after a step with other gradients,
    which the optimizer leaves out.

    Attributes: factor, at least 1; good_steps, the number of finite steps in a row; skipped, that of all steps which
    were left out.
    """

    def __init__(self):
        self.factor = INITIAL
        self.good_steps = 0
        self.skipped = 0

    def update(self, finite):
        """Update the factor after a step and return `finite`.

        finite: all gradients of the step are finite.
        Raises `UserError` if they are not, although the factor is 1 already.
        """
        # The largest possible factor is best. It is found by trying: up after many good steps, down after an overflow.
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
        """Return name -> numpy array, for `restore`."""
        return {
            "factor": np.array(self.factor),
            "good_steps": np.array(self.good_steps),
            "skipped": np.array(self.skipped),
        }

    def restore(self, state):
        """Continue from the arrays that `state` returned."""
        self.factor = float(state["factor"])
        self.good_steps = int(state["good_steps"])
        self.skipped = int(state["skipped"])

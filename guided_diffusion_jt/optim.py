"""The optimizer: AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2)."""

import math

from guided_diffusion_jt.kernels.adamw import adamw
from guided_diffusion_jt.runtime import jt, to_tensor


class AdamW:
    """Adam with decoupled weight decay.

    params:       list of tensors, which `step` changes in place.
    weight_decay: fraction of a parameter taken off per step, times the learning rate.

    Jittor's own counts backward passes for its bias correction, so that microbatches spoil it, and
    decays running statistics.
    """

    def __init__(self, params, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8):
        self.params = list(params)
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.steps = 0
        self.first_moments = [jt.zeros_like(param).stop_grad() for param in self.params]
        self.second_moments = [jt.zeros_like(param).stop_grad() for param in self.params]

    def step(self, gradients, lr):
        """One update at learning rate `lr`; gradients: a tensor for each parameter."""
        self.steps += 1
        beta1, beta2 = self.betas
        numbers = {
            "beta1": beta1,
            "beta2": beta2,
            "eps": self.eps,
            "decay": 1 - lr * self.weight_decay,
            "rate": lr / (1 - beta1**self.steps),
            "correction": math.sqrt(1 - beta2**self.steps),
        }
        jt.sync_all()  # what has still to read the old values
        jt.sync(
            [
                updated
                for tensors in zip(self.params, self.first_moments, self.second_moments, gradients)
                for updated in adamw(*tensors, numbers)
            ]
        )

    def moments(self):
        """(first, second): for each parameter the moving averages of its gradient and of its square,
        zeros before the first step."""
        return self.first_moments, self.second_moments

    def restore(self, first, second, steps):
        """Go on from the moments (numpy arrays, in the order of the parameters) after `steps` steps."""
        self.steps = steps
        for moments, arrays in ((self.first_moments, first), (self.second_moments, second)):
            for moment, array in zip(moments, arrays):
                moment.update(to_tensor(array, dtype=str(moment.dtype)))
        jt.sync_all()


def gradients(loss, params):
    """The gradient of a one-element `loss` for each of `params`; zeros where it does not depend on one."""
    # Without the graph behind them, kept for a second derivative, what they are made of can be freed on the way.
    found = [gradient.stop_grad() for gradient in jt.grad(loss, params)]
    # Fetching one while its siblings are pending takes the convolutions off oneDNN.
    jt.sync(found + [loss])
    return found

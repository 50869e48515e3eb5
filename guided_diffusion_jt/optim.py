"""The optimizer: AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2)."""

import math

from guided_diffusion_jt.kernels.adamw import adamw
from guided_diffusion_jt.runtime import jt, to_tensor


class AdamW:
    """Adam with decoupled weight decay.

    params:       list of tensors that `step` changes in place.
    weight_decay: a step subtracts weight_decay * lr * parameter.
    betas:        decay rates of the moving averages of the gradient and of its square.
    eps:          added to the root of the second moment in the denominator.

    Jittor's own AdamW corrects the bias by the number of backward passes, which is wrong with microbatches. It also
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
        """Update all parameters.

        gradients: one tensor for each parameter.
        lr:        learning rate of this step.
        """
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
        adamw(self.params, self.first_moments, self.second_moments, gradients, numbers)

    def moments(self):
        """Return (first, second), two lists over the parameters: the moving averages of the gradient and of its
        square. They are zeros before the first step."""
        return self.first_moments, self.second_moments

    def restore(self, first, second, steps):
        """Continue after a number of steps.

        first, second: the moments then, numpy arrays in the order of the parameters.
        steps:         number of steps so far, for the bias correction.
        """
        self.steps = steps
        for moments, arrays in ((self.first_moments, first), (self.second_moments, second)):
            for moment, array in zip(moments, arrays):
                moment.update(to_tensor(array, dtype=str(moment.dtype)))
        jt.sync_all()


def gradients(loss, params):
    """Return the gradient of a one-element loss for each of `params`; zeros where the loss does not depend on it."""
    # Jittor keeps the graph behind a gradient for a second derivative. `stop_grad` drops it, which frees activations
    # during the backward pass.
    found = [gradient.stop_grad() for gradient in jt.grad(loss, params)]
    # All gradients are computed together: if one is fetched alone, convolutions run without oneDNN.
    jt.sync(found + [loss])
    return found

"""The optimizer: AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2)."""
import math

import jittor as jt

from guided_diffusion_jt.runtime import scalar, to_tensor


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
        decay = scalar(1 - lr * self.weight_decay)
        rate = scalar(lr / (1 - beta1 ** self.steps))
        correction = scalar(math.sqrt(1 - beta2 ** self.steps))
        eps, keep1, keep2 = scalar(self.eps), scalar(beta1), scalar(beta2)
        new1, new2 = scalar(1 - beta1), scalar(1 - beta2)
        # Not under no_grad: a parameter updated with a value made there has no gradient any more.
        for param, gradient, first, second in zip(
                self.params, gradients, self.first_moments, self.second_moments):
            first.update(keep1 * first + new1 * gradient)
            second.update(keep2 * second + new2 * gradient * gradient)
            param.update(param * decay - rate * first / (jt.sqrt(second) / correction + eps))
        jt.sync_all()  # unread updates would pile up in the graph

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
    found = jt.grad(loss, params)
    # Fetching one while its siblings are pending takes the convolutions off oneDNN.
    jt.sync(found + [loss])
    return found

"""The optimizer: AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2)."""

import math

import torch as th

from guided_diffusion_pt import runtime


class AdamW:
    """Adam with decoupled weight decay.

    params:       list of tensors that `step` changes in place.
    weight_decay: a step subtracts weight_decay * lr * parameter.
    betas:        decay rates of the moving averages of the gradient and of its square.
    eps:          added to the root of the second moment in the denominator.
    """

    def __init__(self, params, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8):
        self.params = list(params)
        self._adamw = th.optim.AdamW(self.params, lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

    def step(self, gradients, lr):
        """Update all parameters.

        gradients: one tensor for each parameter.
        lr:        learning rate of this step.
        """
        for param, gradient in zip(self.params, gradients):
            param.grad = _laid_as(param, gradient)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        for param in self.params:
            param.grad = None  # frees its memory before the next step's gradients come

    def moments(self):
        """Return (first, second), two lists over the parameters: the moving averages of the gradient and of its
        square. They are zeros before the first step."""
        states = [self._adamw.state[param] for param in self.params]
        return tuple(
            [state.get(key, th.zeros_like(param)) for state, param in zip(states, self.params)]
            for key in ("exp_avg", "exp_avg_sq")
        )

    def restore(self, first, second, steps):
        """Continue after a number of steps.

        first, second: the moments then, numpy arrays in the order of the parameters.
        steps:         number of steps so far, for the bias correction.
        """
        for param, mean, square in zip(self.params, first, second):
            self._adamw.state[param] = {
                "step": th.tensor(float(steps), device=param.device),
                "exp_avg": _laid_as(param, runtime.to_tensor(mean).to(param)),
                "exp_avg_sq": _laid_as(param, runtime.to_tensor(square).to(param)),
            }


def _laid_as(param, tensor):
    """Return a tensor in the order in memory of a parameter of its shape: the fused step reads all of them as if they
    lay as the parameter does."""
    if tensor.stride() == param.stride():
        return tensor
    return th.empty_like(param).copy_(tensor)  # keeps the parameter's order


def gradients(loss, params):
    """Return the gradient of a one-element loss for each of `params`; zeros where the loss does not depend on it."""
    return list(th.autograd.grad(loss, params, materialize_grads=True))


def all_finite(tensors):
    """Return whether all numbers of a list of tensors are finite: one number is read from their device."""
    largest = th.stack(th._foreach_norm(tensors, math.inf))  # NaN for a tensor with NaN
    return bool(th.isfinite(largest).all())

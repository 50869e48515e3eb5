"""The optimizer: AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2)."""

import torch as th

from guided_diffusion_pt import runtime


class AdamW:
    """Adam with decoupled weight decay.

    params:       list of tensors, which `step` changes in place.
    weight_decay: fraction of a parameter taken off per step, times the learning rate.
    """

    def __init__(self, params, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8):
        self.params = list(params)
        self._adamw = th.optim.AdamW(self.params, lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

    def step(self, gradients, lr):
        """One update at learning rate `lr`; gradients: a tensor for each parameter."""
        for param, gradient in zip(self.params, gradients):
            # the fused step takes any other order in memory for that of the parameter
            param.grad = gradient.contiguous()
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        for param in self.params:
            param.grad = None  # not kept beside those of the next step

    def moments(self):
        """(first, second): for each parameter the moving averages of its gradient and of its square,
        zeros before the first step."""
        states = [self._adamw.state[param] for param in self.params]
        return tuple(
            [state.get(key, th.zeros_like(param)) for state, param in zip(states, self.params)]
            for key in ("exp_avg", "exp_avg_sq")
        )

    def restore(self, first, second, steps):
        """Go on from the moments (numpy arrays, in the order of the parameters) after `steps` steps."""
        for param, mean, square in zip(self.params, first, second):
            self._adamw.state[param] = {
                "step": th.tensor(float(steps), device=param.device),
                "exp_avg": runtime.to_tensor(mean).to(param),
                "exp_avg_sq": runtime.to_tensor(square).to(param),
            }


def gradients(loss, params):
    """The gradient of a one-element `loss` for each of `params`; zeros where it does not depend on one."""
    return list(th.autograd.grad(loss, params, materialize_grads=True))

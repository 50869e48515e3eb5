"""Gradient checkpointing: activations are recomputed in the backward pass instead of kept (Chen et al. 2016,
arXiv:1604.06174).

Twin of `guided_diffusion_pt/recompute.py`. Jittor has no gradient checkpointing, and four of its
properties need care:

- It computes a value when that is asked for. All recomputations would be in memory together if they were left to the
  end of the backward pass, so each one is computed at once.
- It keeps the graph behind a gradient, for a second derivative. The gradients are cut off from it here.
- If one gradient of a convolution is asked for while the other one waits, Jittor spreads the convolution out in
  memory (10 GiB instead of 2 at 128 px). So every convolution must be in some `checkpoint`, which computes all its
  gradients together.
- The gradient of `concat` overwrites its input as soon as it is computed, even if a part of that has still to be
  read. So every `concat` with a gradient must be in some `checkpoint` too.
"""

from contextlib import contextmanager

from guided_diffusion_jt import runtime
from guided_diffusion_jt.runtime import jt


def is_recomputing():
    """Return whether the current forward pass repeats an earlier one. It must leave no trace then: running
    statistics count each batch once."""
    return runtime.current.recomputations > 0


@contextmanager
def recomputation():
    """Mark the forward passes of this context as repeated ones."""
    runtime.current.recomputations += 1
    try:
        yield
    finally:
        runtime.current.recomputations -= 1


class _Recomputed(jt.Function):
    """func(*inputs) as one operator, whose gradient runs `func` again.

    params: the parameters that `func` uses. They are inputs of the operator too, since only inputs get a gradient.
    """

    def __init__(self, func, params):
        self.func = func
        self.params = params

    def execute(self, *given):
        self.inputs = given[: len(given) - len(self.params)]
        return self.func(*self.inputs)

    def grad(self, grad):
        inputs = [tensor.detach().start_grad() for tensor in self.inputs]
        with recomputation():
            result = self.func(*inputs)
        # The gradient of this sum with respect to the result is what came in, to the bit.
        found = jt.grad((result * grad.detach()).sum(), inputs + self.params)
        found = [gradient.stop_grad() for gradient in found]
        jt.sync(found)
        return found


def checkpoint(func, inputs, modules, flag):
    """Return func(*inputs), a tensor. With `flag`, the backward pass computes its activations again, which saves
    memory and costs a second forward pass.

    func:    a function of the tensors `inputs` that gives the same numbers whenever it is called.
    modules: the modules whose parameters it uses.
    """
    if not flag or jt.flags.no_grad:
        return func(*inputs)
    params = [param for module in modules for param in module.parameters() if not param.is_stop_grad()]
    return _Recomputed(func, params)(*inputs, *params)

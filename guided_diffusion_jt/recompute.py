"""Gradient checkpointing: activations are recomputed in the backward pass instead of kept (Chen et al. 2016,
arXiv:1604.06174).

Twin of `guided_diffusion_pt/recompute.py`. Jittor has none of its own, and four of its
ways stand against it:

- It computes when a value is asked for. If the recomputations were left to the end of the backward pass, all
  of them would be in memory together: each one is computed at once.
- It keeps the graph behind a gradient, for a second derivative: the gradients leave it here.
- A convolution of which one gradient is asked for while the other one waits is spread out in memory (10 GiB
  instead of 2 at 128 px). So every convolution has to be in some `checkpoint`, whose gradients are all
  computed together.
- The gradient of `concat` overwrites what came in as soon as it is computed, also where a part of that has
  still to be read. So every `concat` with a gradient has to be in some `checkpoint` too.
"""

from contextlib import contextmanager

from guided_diffusion_jt import runtime
from guided_diffusion_jt.runtime import jt


def is_recomputing():
    """Whether the forward pass that runs now is a repeated one, which must leave no trace: running
    statistics count each batch once."""
    return runtime.current.recomputations > 0


@contextmanager
def recomputation():
    """A context whose forward passes are repeated ones."""
    runtime.current.recomputations += 1
    try:
        yield
    finally:
        runtime.current.recomputations -= 1


class _Recomputed(jt.Function):
    """func(*inputs) as one operator, whose gradient runs `func` again.

    params: the parameters that `func` uses. They are inputs of the operator too: no other tensor gets a
            gradient through it.
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
    """func(*inputs), a tensor; with `flag`, what it computes on the way is computed again in the backward
    pass, which saves memory and costs a second forward pass.

    func:    a function of the tensors `inputs` that gives the same numbers whenever it is called.
    modules: those whose parameters it uses.
    """
    if not flag or jt.flags.no_grad:
        return func(*inputs)
    params = [param for module in modules for param in module.parameters() if not param.is_stop_grad()]
    return _Recomputed(func, params)(*inputs, *params)

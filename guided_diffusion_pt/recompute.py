"""Gradient checkpointing: activations are recomputed in the backward pass instead of kept (Chen et al. 2016,
arXiv:1604.06174).

Twin of `guided_diffusion_jt/recompute.py`.
"""

from contextlib import contextmanager, nullcontext

import torch as th
import torch.utils.checkpoint

from guided_diffusion_pt import runtime


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


def checkpoint(func, inputs, modules, flag):
    """Return func(*inputs), a tensor. With `flag`, the backward pass computes its activations again, which saves
    memory and costs a second forward pass.

    func:    a function of the tensors `inputs` that gives the same numbers whenever it is called.
    modules: the modules whose parameters it uses.
    """
    if not flag or not th.is_grad_enabled():
        return func(*inputs)
    return torch.utils.checkpoint.checkpoint(
        func,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # the dropout's masks come from the tape
        context_fn=lambda: (nullcontext(), recomputation()),
    )

"""Tensors of which only the shape is known, and modules whose parameters are such tensors."""

import math
from math import prod

import numpy as np

from guided_diffusion_core.noise import INITIAL_WEIGHT


class Shape:
    """A tensor of which only the shape is known."""

    def __init__(self, *shape):
        self.shape = tuple(shape)

    def _broadcast(self, other):
        """Return the shape of a sum or product with another tensor or a number (numpy's rule)."""
        theirs = tuple(getattr(other, "shape", ()))
        try:
            return Shape(*np.broadcast_shapes(self.shape, theirs))
        except ValueError:
            raise ValueError(f"shapes {self.shape} and {theirs} do not fit") from None

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _broadcast

    def __neg__(self):
        return self

    def reshape(self, *shape):
        """Return the same values in another shape; one length may be -1."""
        known = prod(size for size in shape if size != -1)
        shape = tuple(prod(self.shape) // known if size == -1 else size for size in shape)
        if prod(shape) != prod(self.shape):
            raise ValueError(f"shape {self.shape} cannot become {shape}")
        return Shape(*shape)

    def permute(self, *order):
        """Return the tensor with its axes in another order."""
        return Shape(*(self.shape[axis] for axis in order))

    def __getitem__(self, part):
        # numpy knows the rules; no memory is taken for the values
        values = np.broadcast_to(np.int8(0), self.shape)
        return Shape(*values[part].shape)


class ParameterShape(Shape):
    """A parameter or buffer, with the rule of its first value.

    rule: function of (tape, name, shape) -> array.
    """

    def __init__(self, *shape, rule):
        super().__init__(*shape)
        self.rule = rule


def filled(value, dtype=np.float32):
    """Return the rule of a parameter whose values are all alike at first."""
    return lambda tape, name, shape: np.full(shape, value, dtype)


def uniform(fan_in):
    """Return the rule of weights and biases that see `fan_in` inputs: uniform within 1 / sqrt(fan_in), which is
    He et al. 2015 (arXiv:1502.01852, eq. 15) with slope sqrt(5), the default of PyTorch."""
    bound = 1 / math.sqrt(fan_in)
    return lambda tape, name, shape: tape.symmetric_uniform(f"{INITIAL_WEIGHT}/{name}", shape, bound)


def normal(deviation):
    """Return the rule of normally distributed values about zero."""
    return lambda tape, name, shape: tape.normal(f"{INITIAL_WEIGHT}/{name}", shape) * np.float32(deviation)


class Count:
    """Multiplications and additions of matrix products and convolutions in all calls so far."""

    total = 0


class Module:
    """A part of a network: its parameters and its own parts are attributes, as in PyTorch."""

    def __call__(self, *given, **named):
        return self.forward(*given, **named)

    def named_modules(self, prefix=""):
        """Yield (dotted name, module) of this module and all parts of it."""
        yield prefix, self
        for name, part in vars(self).items():
            if isinstance(part, Module):
                yield from part.named_modules(f"{prefix}.{name}" if prefix else name)

    def parameters(self):
        """Return an ordered dict: dotted name -> `ParameterShape` of every parameter and buffer."""
        found = {}
        for module_name, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, ParameterShape):
                    found[f"{module_name}.{name}" if module_name else name] = value
        return found

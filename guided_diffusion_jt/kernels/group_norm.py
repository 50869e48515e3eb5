"""Operators written in C++ where Jittor's own chains of operators cost memory or time on a CPU.

Each one takes float32 and float64 and is compiled once for a type, whatever the sizes. Sums are added up in
blocks, whose results are added in float64: one long float32 sum loses digits.
"""

from guided_diffusion_jt.kernels import source
from guided_diffusion_jt.runtime import jt

_HEADER = source("group_norm.h")
_SIZES = "in0_shape0, in0_shape1, in0_shape2, in0_shape3"  # images, groups, channels of a group, positions
_FORWARD = f'group_norm(in0_p, in1_p, in2_p, {_SIZES}, data["eps"], out0_p, out1_p, out2_p);'
_BACKWARD = f"group_norm_gradient(in0_p, in1_p, in2_p, in3_p, in4_p, {_SIZES}, out0_p, out1_p, out2_p);"


class _GroupNorm(jt.Function):
    """Keeps its input for the gradient, and two numbers a group; as a chain of operators it would keep three
    tensors of the input's size. kept: a list that takes what `_normalized` computes the result from."""

    def execute(self, x, weight, bias, num_groups, eps, kept):
        self.shape = x.shape
        dtype = x.dtype
        x = x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups, -1)
        result, mean, scale = jt.code(
            [x.shape, x.shape[:2], x.shape[:2]],
            [dtype] * 3,
            [x, weight, bias],
            cpu_header=_HEADER,
            cpu_src=_FORWARD,
            data={"eps": eps},
        )
        self.saved = x, weight, mean, scale
        kept[:] = x, weight, bias, mean, scale
        return result.reshape(self.shape)

    def grad(self, grad):
        x, weight, mean, scale = self.saved
        to_x, to_weight, to_bias = jt.code(
            [x.shape, x.shape[:3], x.shape[:3]],
            [x.dtype] * 3,
            [grad.reshape(x.shape), x, weight, mean, scale],
            cpu_header=_HEADER,
            cpu_src=_BACKWARD,
        )
        return to_x.reshape(self.shape), to_weight.sum(0).reshape(-1), to_bias.sum(0).reshape(-1), None, None, None


def group_norm(x, weight, bias, num_groups, eps):
    """`nn.GroupNorm32` of (N, C, ...), with weight and bias (C,)."""
    kept = []
    result = _GroupNorm.apply(x, weight, bias, num_groups, eps, kept)
    if not jt.flags.no_grad:
        result.normalized_from = kept
    return result


def _normalized(x, weight, bias, mean, scale):
    """What the operator computes of its inputs and the two numbers a group, all in its shapes."""
    per_group = (*mean.shape, 1, 1)
    per_channel = (1, *x.shape[1:3], 1)
    normal = (x - mean.reshape(per_group)) * scale.reshape(per_group)
    return normal * weight.reshape(per_channel) + bias.reshape(per_channel)


class _SiLU(jt.Function):
    """Keeps its input alone for the gradient; not even that after a group normalisation, whose result is computed
    again from what that one keeps."""

    def execute(self, x, normalized_from):
        self.x = x if normalized_from is None else None
        self.normalized_from = normalized_from
        return x * jt.sigmoid(x)

    def grad(self, grad):
        # Of the gradient's shape, an operator between them would run on its own and early: its result would wait.
        x = self.x if self.normalized_from is None else _normalized(*self.normalized_from)
        sigmoid = jt.sigmoid(x)
        return (grad.reshape(x.shape) * sigmoid * (1 + x * (1 - sigmoid))).reshape(grad.shape), None


def silu(x):
    """x * sigmoid(x)."""
    return _SiLU.apply(x, getattr(x, "normalized_from", None))

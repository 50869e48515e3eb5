"""Group normalisation and SiLU, where Jittor's own chains of operators cost memory and time on a CPU.

The operators take float32 and float64 and are compiled once for each type, whatever the sizes.
"""

from guided_diffusion_jt.kernels import source
from guided_diffusion_jt.runtime import jt

_HEADER = source("group_norm.h")
_SIZES = "in0_shape0, in0_shape1, in0_shape2, in0_shape3"  # images, groups, channels of a group, positions
_FORWARD = f'group_norm(in0_p, in1_p, in2_p, {_SIZES}, data["eps"], out0_p, out1_p, out2_p);'
_BACKWARD = f"group_norm_gradient(in0_p, in1_p, in2_p, in3_p, in4_p, {_SIZES}, out0_p, out1_p, out2_p);"


class _GroupNorm(jt.Function):
    """Group normalisation that keeps its input and two numbers per group for the gradient. A chain of operators
    would keep three tensors of the input's size.

    kept: a list that takes the arguments from which `_normalized` computes the result again.
    """

    def execute(self, x, weight, bias, num_groups, eps, kept):
        self.shape = x.shape
        dtype = x.dtype
        x = x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups, -1)  # (N, groups, C / groups, positions)
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
        # The operator gives the gradients of weight and bias for each image: (N, groups, C / groups) to (C,).
        return to_x.reshape(self.shape), to_weight.sum(0).reshape(-1), to_bias.sum(0).reshape(-1), None, None, None


def group_norm(x, weight, bias, num_groups, eps):
    """Return `nn.GroupNorm32` of x (N, C, ...), with weight and bias (C,)."""
    kept = []
    result = _GroupNorm.apply(x, weight, bias, num_groups, eps, kept)
    if not jt.flags.no_grad:
        result.normalized_from = kept
    return result


def _normalized(x, weight, bias, mean, scale):
    """Compute the operator's result again from its inputs and the two numbers per group, all in its shapes."""
    per_group = (*mean.shape, 1, 1)
    per_channel = (1, *x.shape[1:3], 1)
    normal = (x - mean.reshape(per_group)) * scale.reshape(per_group)
    return normal * weight.reshape(per_channel) + bias.reshape(per_channel)


class _SiLU(jt.Function):
    """SiLU that keeps only its input for the gradient. After a group normalisation it keeps nothing: its input is
    computed again from what the normalisation keeps."""

    def execute(self, x, normalized_from):
        self.x = x if normalized_from is None else None
        self.normalized_from = normalized_from
        return x * jt.sigmoid(x)

    def grad(self, grad):
        # The gradient takes x's shape, not the other way round: a reshape of x would run on its own and early, and its
        # result would be kept until it is used.
        x = self.x if self.normalized_from is None else _normalized(*self.normalized_from)
        # d/dx x sigmoid(x) = sigmoid(x) (1 + x (1 - sigmoid(x)))
        sigmoid = jt.sigmoid(x)
        return (grad.reshape(x.shape) * sigmoid * (1 + x * (1 - sigmoid))).reshape(grad.shape), None


def silu(x):
    """Return x * sigmoid(x), any shape."""
    return _SiLU.apply(x, getattr(x, "normalized_from", None))

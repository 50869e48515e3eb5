"""Group normalisation and SiLU, where Jittor's own chains of operators cost memory and time on a CPU.

The operators take float32 and float64 and are compiled once for each type, whatever the sizes. Next to each one is the
same in generic operators, for `runtime.is_generic`. All keep only the input and two numbers per group for the gradient.
"""

from guided_diffusion_jt import runtime
from guided_diffusion_jt.kernels import source
from guided_diffusion_jt.kernels.sums import mean_last, sum_last
from guided_diffusion_jt.runtime import jt

_HEADER = source("group_norm.h")
_SIZES = "in0_shape0, in0_shape1, in0_shape2, in0_shape3"  # images, groups, channels of a group, positions
_FORWARD = f'group_norm(in0_p, in1_p, in2_p, {_SIZES}, data["eps"], out0_p, out1_p, out2_p);'
_BACKWARD = f"group_norm_gradient(in0_p, in1_p, in2_p, in3_p, in4_p, {_SIZES}, out0_p, out1_p, out2_p);"


def _forward(x, weight, bias, eps):
    """Return the result in x's shape, and the mean and 1 / deviation of each group, (N, groups) both.

    x: (N, groups, C / groups, positions).
    """
    if runtime.is_generic():
        return _generic_forward(x, weight, bias, eps)
    return jt.code(
        [x.shape, x.shape[:2], x.shape[:2]],
        [x.dtype] * 3,
        [x, weight, bias],
        cpu_header=_HEADER,
        cpu_src=_FORWARD,
        data={"eps": eps},
    )


def _generic_forward(x, weight, bias, eps):
    groups = x.reshape(*x.shape[:2], -1)  # (N, groups, C / groups * positions)
    mean = mean_last(groups)
    # The mean comes first, then the variance of the differences: E[x^2] - E[x]^2 would lose digits.
    centred = groups - mean
    scale = 1 / jt.sqrt(mean_last(centred * centred) + runtime.scalar(eps))
    mean = mean.reshape(x.shape[:2])
    scale = scale.reshape(x.shape[:2])
    return _normalized(x, weight, bias, mean, scale), mean, scale


def _backward(grad, x, weight, mean, scale):
    """Return the gradient of x, and each image's part of those of weight and bias, (N, groups, C / groups) both."""
    if runtime.is_generic():
        return _generic_backward(grad, x, weight, mean, scale)
    return jt.code(
        [x.shape, x.shape[:3], x.shape[:3]],
        [x.dtype] * 3,
        [grad, x, weight, mean, scale],
        cpu_header=_HEADER,
        cpu_src=_BACKWARD,
    )


# With y = (x - mean) scale and g = grad weight, the gradient of x is scale (g - <g> - y <g y>), where <> is the mean
# over a group.
def _generic_backward(grad, x, weight, mean, scale):
    per_group = (*mean.shape, 1, 1)
    scale = scale.reshape(per_group)
    y = (x - mean.reshape(per_group)) * scale
    weight = weight.reshape(1, *x.shape[1:3], 1)
    to_weight = sum_last(grad * y)  # (N, groups, C / groups, 1)
    to_bias = sum_last(grad)
    # A Python number, since whole ones are exact: a new tensor would be waited for, and compute pending gradients one
    # by one.
    count = x.shape[2] * x.shape[3]
    shift = (to_bias * weight).sum(2, keepdims=True) / count  # <g>, (N, groups, 1, 1)
    slope = (to_weight * weight).sum(2, keepdims=True) / count  # <g y>
    to_x = scale * (grad * weight - shift - y * slope)
    return to_x, to_weight.reshape(x.shape[:3]), to_bias.reshape(x.shape[:3])


class _GroupNorm(jt.Function):
    """Group normalisation that keeps its input and two numbers per group for the gradient. A chain of operators
    would keep three tensors of the input's size.

    kept: a list that takes the arguments from which `_normalized` computes the result again.
    """

    def execute(self, x, weight, bias, num_groups, eps, kept):
        self.shape = x.shape
        x = x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups, -1)  # (N, groups, C / groups, positions)
        result, mean, scale = _forward(x, weight, bias, eps)
        self.saved = x, weight, mean, scale
        kept[:] = x, weight, bias, mean, scale
        return result.reshape(self.shape)

    def grad(self, grad):
        x, *others = self.saved
        to_x, to_weight, to_bias = _backward(grad.reshape(x.shape), x, *others)
        # Each image has its own gradients of weight and bias: (N, groups, C / groups) to (C,).
        return to_x.reshape(self.shape), to_weight.sum(0).reshape(-1), to_bias.sum(0).reshape(-1), None, None, None


def group_norm(x, weight, bias, num_groups, eps):
    """Return `nn.GroupNorm32` of x (N, C, ...), with weight and bias (C,)."""
    kept = []
    result = _GroupNorm.apply(x, weight, bias, num_groups, eps, kept)
    if not jt.flags.no_grad:
        result.normalized_from = kept
    return result


def _normalized(x, weight, bias, mean, scale):
    """Compute the operator's result from its inputs and the two numbers per group, all in its shapes."""
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

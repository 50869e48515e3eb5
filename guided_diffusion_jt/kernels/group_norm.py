"""Operators written in C++ where Jittor's own chains of operators cost memory or time on a CPU.

Each one takes float32 and float64 and is compiled once for a type, whatever the sizes. Sums are added up in
blocks, whose results are added in float64: one long float32 sum loses digits.
"""

from guided_diffusion_jt.runtime import jt

_SUMS = r"""
#include <cmath>
#include <algorithm>

// The sum of f(0) + ... + f(count - 1), in blocks of 256.
template <class T, class F> static inline double blocked_sum(int64_t count, F f) {
    double total = 0;
    for (int64_t start = 0; start < count; start += 256) {
        const int64_t stop = std::min<int64_t>(start + 256, count);
        T part = 0;
        for (int64_t i = start; i < stop; i++) part += f(i);
        total += part;
    }
    return total;
}
"""

# in0: x (N, G, C / G, positions). in1, in2: weight, bias (C,). out0: like x. out1, out2: (N, G).
_GROUP_NORM = r"""
    const int64_t groups = in0_shape0 * in0_shape1, channels = in0_shape2, positions = in0_shape3;
    const int64_t count = channels * positions;
    const double eps = data["eps"];
    #pragma omp parallel for
    for (int64_t group = 0; group < groups; group++) {
        const auto* x = in0_p + group * count;
        const in0_type mean = blocked_sum<in0_type>(count, [=](int64_t i) { return x[i]; }) / count;
        const double variance = blocked_sum<in0_type>(
            count, [=](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / count;
        const in0_type scale = 1 / std::sqrt(variance + eps);
        out1_p[group] = mean;
        out2_p[group] = scale;
        for (int64_t c = 0; c < channels; c++) {
            const int64_t channel = group % in0_shape1 * channels + c;
            const in0_type weight = in1_p[channel], bias = in2_p[channel];
            for (int64_t i = c * positions; i < (c + 1) * positions; i++)
                out0_p[group * count + i] = (x[i] - mean) * scale * weight + bias;
        }
    }
"""

# in0: gradient, in1: x, both (N, G, C / G, positions). in2: weight (C,). in3, in4: mean, scale (N, G).
# out0: gradient of x. out1, out2: (N, G, C / G), parts of the gradients of weight and bias.
_GROUP_NORM_GRADIENT = r"""
    const int64_t groups = in0_shape0 * in0_shape1, channels = in0_shape2, positions = in0_shape3;
    #pragma omp parallel for
    for (int64_t group = 0; group < groups; group++) {
        const in0_type mean = in3_p[group], scale = in4_p[group];
        const auto* weight = in2_p + group % in0_shape1 * channels;
        double sum = 0, product = 0;
        for (int64_t c = 0; c < channels; c++) {
            const auto* grad = in0_p + (group * channels + c) * positions;
            const auto* x = in1_p + (group * channels + c) * positions;
            const double to_weight = scale * blocked_sum<in0_type>(
                positions, [=](int64_t i) { return grad[i] * (x[i] - mean); });
            const double to_bias = blocked_sum<in0_type>(positions, [=](int64_t i) { return grad[i]; });
            out1_p[group * channels + c] = to_weight;
            out2_p[group * channels + c] = to_bias;
            product += weight[c] * to_weight;
            sum += weight[c] * to_bias;
        }
        const in0_type shift = sum / (channels * positions), slope = product / (channels * positions) * scale;
        for (int64_t c = 0; c < channels; c++) {
            const int64_t start = (group * channels + c) * positions;
            const in0_type factor = weight[c];
            for (int64_t i = start; i < start + positions; i++)
                out0_p[i] = scale * (in0_p[i] * factor - shift - (in1_p[i] - mean) * slope);
        }
    }
"""


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
            cpu_header=_SUMS,
            cpu_src=_GROUP_NORM,
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
            cpu_header=_SUMS,
            cpu_src=_GROUP_NORM_GRADIENT,
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
    """What `_GROUP_NORM` computes of its inputs and the two numbers a group, all in its shapes."""
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

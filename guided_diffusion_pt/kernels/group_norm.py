"""Group normalisation of large images whose channels come last in memory.

torch's own operator adds up all positions of a channel one after another in float32 there: at 256x256 its variance is
off by 1.3e-5, a hundred times more than with the channels first. Here each strip of a few rows has its own sum. A
strip also stays in the processor's caches.
"""

from math import gcd

import torch as th
from torch.nn import functional as F

from guided_diffusion_pt import runtime

_POSITIONS = 64**2  # up to this number of positions, torch's own operator is within 1.5e-6
_STRIPS = 64  # the largest number of strips of an image


def serves(x):
    """Return whether x (N, C, ...) is on the CPU, is large and has its channels last in memory."""
    return (
        x.device.type == "cpu"
        and not runtime.is_generic()
        and x.dim() == 4
        and x.shape[2] * x.shape[3] > _POSITIONS
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=th.channels_last)
    )


def _strips(x):
    """View x (N, C, H, W) as (N, strips, positions of a strip, C), without a copy."""
    n, channels, height, _ = x.shape
    # (N, C, H, W) to (N, H, W, C) to (N, strips, H W / strips, C); the number of strips divides H.
    return x.permute(0, 2, 3, 1).view(n, gcd(height, _STRIPS), -1, channels)


def _statistics(x, groups):
    """Return mean and variance (N, groups) of x (N, C, H, W), in float64."""

    def of_strip(strip):
        """Return torch's mean and 1 / sqrt(variance) of a strip (positions, C): (2, groups)."""
        positions, channels = strip.shape
        image = strip.view(1, 1, positions, channels).permute(0, 3, 1, 2)  # (1, C, 1, positions)
        return th.cat(th.native_group_norm(image, None, None, 1, channels, positions, groups, 0.0)[1:])

    found = []
    for image in _strips(x):
        found.append(th.stack([of_strip(strip) for strip in image]))  # (strips, 2, groups)
    means, roots = th.stack(found).double().unbind(2)  # (N, strips, groups) each
    # The variance of all positions is the mean of the strips' variances plus the variance of the strips' means.
    mean = means.mean(1)
    return mean, (roots**-2 + (means - mean[:, None]) ** 2).mean(1)


def _sums(gradient, x):
    """Return the sums over positions of the gradient and of its product with x, float64 (N, C) each.

    gradient, x: (N, C, H, W).
    """
    found = []
    for gradients, inputs in zip(_strips(gradient), _strips(x)):  # (strips, positions, C) of one image
        sums = [th.stack([strip.sum(0), (strip * values).sum(0)]) for strip, values in zip(gradients, inputs)]
        found.append(th.stack(sums))  # (strips, 2, C)
    return th.stack(found).double().sum(1).unbind(1)  # (N, strips, 2, C) to (N, 2, C)


class _GroupNorm(th.autograd.Function):
    """Group normalisation (Wu & He 2018, arXiv:1803.08494, eq. 1)."""

    @staticmethod
    def forward(ctx, x, groups, weight, bias, eps):
        mean, variance = _statistics(x, groups)
        repeated = x.shape[1] // groups
        root = (variance + eps).rsqrt()
        # (N, groups) to (N, C): each channel has the statistics of its group.
        mean = mean.repeat_interleave(repeated, 1)
        root = root.repeat_interleave(repeated, 1)
        ctx.save_for_backward(x, weight, mean, root)
        ctx.groups = groups
        # (x - mean) root weight + bias = x scale + offset
        scale = weight * root
        offset = bias - mean * scale
        ctx.mark_non_differentiable(scale, offset)
        return _affine(x, scale, offset), scale, offset

    @staticmethod
    def backward(ctx, gradient, *_):
        x, weight, mean, root = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=th.channels_last)
        n, channels, height, width = x.shape
        plain, moment = _sums(gradient, x)
        centred = (moment - mean * plain) * root  # (N, C), the gradient times the normalised values

        def shared(values):
            """Return the mean over each group's channels and positions, repeated for its channels: (N, C)."""
            repeated = channels // ctx.groups
            sums = (values * weight).view(n, ctx.groups, repeated).sum(2) / (repeated * height * width)
            return sums.repeat_interleave(repeated, 1)

        # With y = (x - mean) root and g = gradient weight, the gradient of x is root (g - <g> - y <g y>), where <> is
        # the mean over a group.
        slope = -shared(centred) * root**2
        to_x = _affine(x, slope, -slope * mean - shared(plain) * root)
        to_x.addcmul_(gradient, _spread(weight * root, x))
        return to_x, None, centred.sum(0).to(weight.dtype), plain.sum(0).to(weight.dtype), None


class _SiLU(th.autograd.Function):
    """SiLU of x = slope * source + offset, which keeps these three instead of x."""

    @staticmethod
    def forward(ctx, x, source, slope, offset):
        ctx.save_for_backward(source, slope, offset)
        return F.silu(x)

    @staticmethod
    def backward(ctx, gradient):
        return th.ops.aten.silu_backward(gradient, _affine(*ctx.saved_tensors)), None, None, None


def group_norm(x, groups, weight, bias, eps):
    """Return `nn.GroupNorm32` of x (N, C, H, W), for which `serves` must be true."""
    out, slope, offset = _GroupNorm.apply(x, groups, weight, bias, eps)
    if th.is_grad_enabled():
        out.affine_of = x, slope, offset
    return out


def silu(x):
    """Return x * sigmoid(x), any shape."""
    return _SiLU.apply(x, *x.affine_of) if hasattr(x, "affine_of") else F.silu(x)


def _spread(values, x):
    """Shape values (N, C) as factors of x (N, C, H, W)."""
    return values.to(x.dtype)[:, :, None, None]


def _affine(x, slope, offset):
    """Return slope * x + offset, with slope and offset (N, C)."""
    return th.addcmul(_spread(offset, x), x, _spread(slope, x), out=th.empty_like(x))

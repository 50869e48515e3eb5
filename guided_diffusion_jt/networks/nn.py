"""The layers for networks with one source for all backends, in Jittor.

`guided_diffusion_core/networks/nn.py` says what each one does.
"""

import math

from guided_diffusion_core.networks.bilinear import bilinear_matrix
from guided_diffusion_core.networks.family import Prediction  # noqa: F401
from guided_diffusion_core.networks.fourier import column_transform
from guided_diffusion_jt import runtime
from guided_diffusion_jt.kernels.sums import mean_last
from guided_diffusion_jt.nn import (  # noqa: F401
    BatchNorm2d,
    Dropout,
    Dropout2d,
    LeakyReLU,
    SiLU,
    batched_matmul,
    softmax,
    timestep_embedding,
)
from guided_diffusion_jt.nn import GroupNorm32 as GroupNorm  # noqa: F401
from guided_diffusion_jt.nn import Network as _Network
from guided_diffusion_jt.recompute import checkpoint  # noqa: F401
from guided_diffusion_jt.runtime import jt, nn, scalar

Conv2d = nn.Conv2d
Embedding = nn.Embedding
Identity = nn.Identity
Linear = nn.Linear
ModuleList = nn.ModuleList
Sequential = nn.Sequential
cos = jt.cos
exp = jt.exp
sigmoid = jt.sigmoid
sin = jt.sin
sqrt = jt.sqrt
tanh = jt.tanh
_silu = SiLU()


class Module(nn.Module):
    """A module whose source calls its forward pass `forward`, as PyTorch does."""

    def execute(self, *given, **named):
        return self.forward(*given, **named)


class Network(_Network, Module):
    """A whole network, built from its plan."""


class ReLU(nn.Module):
    """max(x, 0)."""

    def execute(self, x):
        return relu(x)


class GELU(nn.Module):
    """x Phi(x), by the error function."""

    def execute(self, x):
        return gelu(x)


class Sigmoid(nn.Module):
    """1 / (1 + exp(-x))."""

    def execute(self, x):
        return sigmoid(x)


class ConvTranspose2d(nn.ConvTranspose):
    """Transposed convolution by a square kernel."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, bias=True):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, output_padding, bias=bias)


class LayerNorm(nn.Module):
    """Normalisation of the last axis: (..., features).

    Jittor's own computes the variance as E[x^2] - E[x]^2, a difference of large numbers that loses digits.
    """

    def __init__(self, features, eps=1e-5):
        self.eps = eps
        self.weight = jt.ones((features,))
        self.bias = jt.zeros((features,))

    def execute(self, x):
        centred = x - mean_last(x)
        deviation = jt.sqrt(mean_last(centred * centred) + scalar(self.eps))
        return centred / deviation * self.weight + self.bias


class RMSNorm(nn.Module):
    """Normalisation x / sqrt(mean(x^2) + eps) * weight over the last axis of x (..., features) (Zhang & Sennrich 2019,
    arXiv:1910.07467)."""

    def __init__(self, features, eps=1e-5):
        self.eps = eps
        self.weight = jt.ones((features,))

    def execute(self, x):
        return x / jt.sqrt(mean_last(x * x) + scalar(self.eps)) * self.weight


class MaxPool2d(nn.Module):
    """Largest value of each window of `size` x `size` pixels; of equal values the first one gets the gradient."""

    def __init__(self, size=2):
        self.size = size

    def execute(self, x):
        size = self.size
        height = x.shape[2] // size * size
        width = x.shape[3] // size * size
        largest = None
        for i in range(size):
            for j in range(size):
                other = x[:, :, i:height:size, j:width:size]
                largest = other if largest is None else jt.ternary(other > largest, other, largest)
        return largest


class Upsample(nn.Module):
    """Upsampling by a whole factor, "nearest" or "bilinear"."""

    def __init__(self, scale, mode="nearest"):
        self.scale = scale
        self.mode = mode

    def execute(self, x):
        if self.mode == "bilinear":
            return resize(x, (x.shape[2] * self.scale, x.shape[3] * self.scale))
        return nn.interpolate(x, scale_factor=self.scale, mode="nearest")


class _GELU(jt.Function):
    """x Phi(x), with its own gradient: that of Jittor's erf has a constant in float32, in float64 too."""

    def execute(self, x):
        self.x = x
        # Numbers of the gradient too: made there, they would be waited for, and compute pending gradients one by one.
        self.half = scalar(0.5)
        self.one = scalar(1.0)
        self.root = scalar(math.sqrt(0.5))
        self.exponent = scalar(-0.5)
        self.factor = scalar(1 / math.sqrt(2 * math.pi))
        return x * self._share(x)

    def _share(self, x):
        return self.half * (self.one + jt.erf(x * self.root))

    def grad(self, grad):
        # d/dx x Phi(x) = Phi(x) + x phi(x)
        density = jt.exp(self.x * self.x * self.exponent) * self.factor
        return grad * (self._share(self.x) + self.x * density)


def Parameter(*shape, deviation=0.0, value=0.0):
    """Return a parameter of any shape."""
    return jt.zeros(shape)


def zeroed(module):
    """Return a module as it is: its initial values come from the core."""
    return module


def relu(x):
    """Return max(x, 0), element by element."""
    return jt.ternary(x > 0, x, jt.zeros_like(x))


def silu(x):
    """Return x * sigmoid(x), any shape."""
    return _silu(x)


def gelu(x):
    """Return x Phi(x), element by element."""
    return _GELU.apply(x)


def cat(tensors, dim=1):
    """Return tensors joined along an axis."""
    return jt.concat(list(tensors), dim)


def matmul(a, b):
    """Return (..., n, k) times (..., k, m)."""
    product = batched_matmul(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]))  # (B, n, m)
    return product.reshape(*a.shape[:-1], b.shape[-1])


def mean(x, dim):
    """Return the mean over an axis, or several, whose length becomes one."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    count = math.prod(x.shape[axis] for axis in dims)
    return x.sum(dims, keepdims=True) / scalar(count)


def resize(x, size):
    """Return (N, C, H, W) resized bilinearly to (H', W') of `size`, pixel centres aligned.

    It multiplies with matrices, because Jittor's own computes the places in float32, in float64 too.
    """
    n, channels, height, width = x.shape
    rows = constant(bilinear_matrix(height, size[0]))
    columns = constant(bilinear_matrix(width, size[1]))
    # (N C H, W) times (W, W')
    x = jt.matmul(x.reshape(n * channels * height, width), columns).reshape(n, channels, height, size[1])
    # (N C W', H) times (H, H')
    x = jt.matmul(x.permute(0, 1, 3, 2).reshape(n * channels * size[1], height), rows)
    return x.reshape(n, channels, size[1], size[0]).permute(0, 1, 3, 2)  # (N, C, W', H') to (N, C, H', W')


def fft2(x):
    """Return the Fourier transform of real (N, C, H, W), not scaled: (real, imaginary) with all frequencies.

    It multiplies rows and then columns with real matrices, because Jittor has no transform on a CPU.
    """
    n, channels, height, width = x.shape
    rows = constant(column_transform(width)[:width] * math.sqrt(width))  # (W, 2 W)
    columns = constant(column_transform(height) * math.sqrt(height))  # (2 H, 2 H)
    x = jt.matmul(x.reshape(-1, width), rows)  # (N C H, 2 W), real parts before imaginary ones
    x = x.reshape(n, channels, height, 2, width).permute(0, 1, 4, 3, 2)  # (N, C, W, 2, H)
    x = jt.matmul(x.reshape(-1, 2 * height), columns)
    x = x.reshape(n, channels, width, 2, height).permute(3, 0, 1, 4, 2)  # (2, N, C, H, W)
    return x[0], x[1]


def ifft2(real, imaginary):
    """Return the real part of the inverse of `fft2`."""
    n, channels, height, width = real.shape
    # the transposes of orthogonal matrices are their inverses
    columns = constant(column_transform(height).T / math.sqrt(height))  # (2 H, 2 H)
    rows = constant(column_transform(width).T[:, :width] / math.sqrt(width))  # (2 W, W): of the real part alone
    parts = [part.permute(0, 1, 3, 2).reshape(-1, height) for part in (real, imaginary)]  # (N C W, H) each
    x = jt.matmul(jt.concat(parts, 1), columns)  # (N C W, 2 H)
    x = x.reshape(n, channels, width, 2, height).permute(0, 1, 4, 3, 2)  # (N, C, H, 2, W)
    return jt.matmul(x.reshape(-1, 2 * width), rows).reshape(n, channels, height, width)


def precision():
    """Return the name of the type of parameters and computation, "float32" or "float64"."""
    return runtime.precision()


def floating(x):
    """Return whole numbers as floating-point ones, in the precision of the computation."""
    return x.cast(runtime.precision())


def constant(array):
    """Return a numpy array as a tensor in the precision of the computation."""
    return runtime.to_tensor(array, dtype=runtime.precision())

"""The layers for networks with one source for all backends, in PyTorch.

`guided_diffusion_core/networks/nn.py` says what each one does.
"""

import torch as th
from torch import cos, exp, sigmoid, sin, sqrt, tanh  # noqa: F401
from torch.nn import (  # noqa: F401
    GELU,
    Conv2d,
    ConvTranspose2d,
    Embedding,
    Identity,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    ReLU,
    Sequential,
    Sigmoid,
)
from torch.nn import functional as F
from torch.nn.functional import gelu, relu  # noqa: F401

from guided_diffusion_core.networks.family import Prediction  # noqa: F401
from guided_diffusion_pt import runtime
from guided_diffusion_pt.nn import (  # noqa: F401
    BatchNorm2d,
    Dropout,
    Dropout2d,
    LeakyReLU,
    Network,
    SiLU,
    softmax,
    timestep_embedding,
)
from guided_diffusion_pt.nn import GroupNorm32 as GroupNorm  # noqa: F401
from guided_diffusion_pt.recompute import checkpoint  # noqa: F401
from guided_diffusion_pt.runtime import scalar  # noqa: F401

_silu = SiLU()


class RMSNorm(Module):
    """Normalisation x / sqrt(mean(x^2) + eps) * weight over the last axis of x (..., features) (Zhang & Sennrich 2019,
    arXiv:1910.07467)."""

    def __init__(self, features, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = th.nn.Parameter(th.ones(features))

    def forward(self, x):
        return x / (x * x).mean(-1, keepdim=True).add(self.eps).sqrt() * self.weight


class MaxPool2d(Module):
    """Largest value of each window of `size` x `size` pixels."""

    def __init__(self, size=2):
        super().__init__()
        self.size = size

    def forward(self, x):
        return F.max_pool2d(x, self.size)


class Upsample(Module):
    """Upsampling by a whole factor, "nearest" or "bilinear"."""

    def __init__(self, scale, mode="nearest"):
        super().__init__()
        self.scale = scale
        self.settings = {"mode": mode, "align_corners": False if mode == "bilinear" else None}

    def forward(self, x):
        return F.interpolate(x, scale_factor=self.scale, **self.settings)


def Parameter(*shape, deviation=0.0, value=0.0):
    """Return a parameter of any shape."""
    return th.nn.Parameter(th.zeros(shape))


def zeroed(module):
    """Return a module as it is: its initial values come from the core."""
    return module


def silu(x):
    """Return x * sigmoid(x), any shape."""
    return _silu(x)


def cat(tensors, dim=1):
    """Return tensors joined along an axis."""
    return th.cat(tensors, dim)


def matmul(a, b):
    """Return (..., n, k) times (..., k, m)."""
    return th.matmul(a, b)


def mean(x, dim):
    """Return the mean over an axis, or several, whose length becomes one."""
    return x.mean(dim, keepdim=True)


def resize(x, size):
    """Return (N, C, H, W) resized bilinearly to (H', W') of `size`, pixel centres aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def fft2(x):
    """Return the Fourier transform of real (N, C, H, W), not scaled: (real, imaginary) with all frequencies."""
    spectrum = th.fft.fft2(runtime.widened(x))
    return spectrum.real, spectrum.imag


def ifft2(real, imaginary):
    """Return the real part of the inverse of `fft2`."""
    return th.fft.ifft2(th.complex(real, imaginary)).real


def precision():
    """Return the name of the type of parameters and computation, "float32" or "float64"."""
    return runtime.precision()


def floating(x):
    """Return whole numbers as floating-point ones, in the precision of the computation."""
    return x.to(th.get_default_dtype())


@th.compiler.assume_constant_result  # the compiler calls it once, in place of numpy in its graph
def constant(array):
    """Return a numpy array as a tensor in the precision of the computation."""
    return runtime.to_tensor(array, dtype=runtime.precision())

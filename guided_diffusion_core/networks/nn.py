"""The layers of networks with one source for all backends. The layers of this module compute only shapes.

A source says `from .. import nn`. Imported as a part of this package it gets this module, and calling the network on
a `Shape` returns the shape of the output; imported as a part of a backend's `networks` it gets the `nn` there, which
computes. From a network here follow the names, shapes, initial values and operations of all backends, without a
framework. `LAYERS` and `FUNCTIONS` are the contract: `tests/networks/test_nn.py` holds every `nn` to it.
"""

import math
from math import prod

import numpy as np

from guided_diffusion_core.networks.family import Prediction as Prediction
from guided_diffusion_core.networks.shapes import Count, Module, ParameterShape, Shape, filled, normal, uniform

LAYERS = (
    *("Network", "Module", "Sequential", "ModuleList", "Parameter", "zeroed"),
    *("Conv2d", "ConvTranspose2d", "Linear", "Embedding", "GroupNorm", "BatchNorm2d", "LayerNorm", "RMSNorm"),
    *("ReLU", "LeakyReLU", "SiLU", "GELU", "Sigmoid", "Identity", "Dropout", "Dropout2d", "MaxPool2d", "Upsample"),
)
FUNCTIONS = (
    *(
        "relu",
        "silu",
        "gelu",
        "sigmoid",
        "tanh",
        "exp",
        "sqrt",
        "sin",
        "cos",
        "softmax",
        "cat",
        "matmul",
        "mean",
        "resize",
    ),
    *("fft2", "ifft2", "timestep_embedding", "floating", "precision", "constant", "scalar", "checkpoint"),
)


class Network(Module):
    """A whole network, built from its plan.

    `forward(x, t, conditioning=None)` takes the image's and the noised mask's channels x (N, in_ch, S, S) and the time
    steps t (N,); it returns the prediction (N, out_channels, S, S), or `Prediction(value, calibration)`.
    """

    def condition(self, image):
        """Return a tuple of tensors that depend only on the image (N, C, S, S), or None.

        `forward` gets them as `conditioning`, so that sampling computes them once for all steps.
        """
        return None


class Sequential(Module):
    """Modules in a row, named "0", "1", ..."""

    def __init__(self, *modules):
        for index, module in enumerate(modules):
            setattr(self, str(index), module)

    def __iter__(self):
        return iter([part for part in vars(self).values() if isinstance(part, Module)])

    def __len__(self):
        return len(list(iter(self)))

    def __getitem__(self, index):
        return list(self)[index]

    def forward(self, x):
        for module in self:
            x = module(x)
        return x


class ModuleList(Sequential):
    """A list of modules, named "0", "1", ..., which the network calls itself."""

    def __init__(self, modules):
        super().__init__(*modules)


def Parameter(*shape, deviation=0.0, value=0.0):
    """Return a parameter of any shape; it starts with normal values of that standard deviation about zero, or without a
    deviation at one value."""
    return ParameterShape(*shape, rule=normal(deviation) if deviation else filled(value))


def zeroed(module):
    """Return a module after making its parameters start at zero."""
    for value in module.parameters().values():
        value.rule = filled(0.0)
    return module


class _Layer(Module):
    """A layer that leaves the shape as it is; settings do not matter here."""

    def __init__(self, *settings, **named):
        pass

    def forward(self, x):
        return x


class ReLU(_Layer):
    """max(x, 0)."""


class LeakyReLU(_Layer):
    """x where positive, else 0.01 x."""


class SiLU(_Layer):
    """x sigmoid(x)."""


class GELU(_Layer):
    """x Phi(x), by the error function."""


class Sigmoid(_Layer):
    """1 / (1 + exp(-x))."""


class Identity(_Layer):
    """x."""


class Dropout(_Layer):
    """Elements dropped at a rate, the others scaled up; in training only."""


class Dropout2d(_Layer):
    """Channels dropped at a rate, the others scaled up; in training only."""


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)


class _Weighted(Module):
    """A layer with a weight and, if asked for, a bias."""

    def _add(self, weight, out_channels, fan_in, bias):
        self.weight = ParameterShape(*weight, rule=uniform(fan_in))
        if bias:
            self.bias = ParameterShape(out_channels, rule=uniform(fan_in))

    @staticmethod
    def _check(found, expected, what="channels"):
        if found != expected:
            raise ValueError(f"{found} {what} instead of {expected}")


class Conv2d(_Weighted):
    """Convolution of (N, in_channels, H, W) with kernels of any size, stride, padding, dilation and groups."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True):
        self.in_channels = in_channels
        self.settings = (_pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation))
        weight = (out_channels, in_channels // groups, *_pair(kernel_size))
        self._add(weight, out_channels, prod(weight[1:]), bias)

    def forward(self, x):
        n, channels, *sizes = x.shape
        self._check(channels, self.in_channels)
        out = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip(sizes, *self.settings)]
        result = Shape(n, self.weight.shape[0], *out)
        Count.total += 2 * prod(result.shape) * prod(self.weight.shape[1:])
        return result


class ConvTranspose2d(_Weighted):
    """Transposed convolution of (N, in_channels, H, W), by a square kernel."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, bias=True):
        self.settings = (kernel_size, stride, padding, output_padding)
        weight = (in_channels, out_channels, kernel_size, kernel_size)
        self._add(weight, out_channels, prod(weight[1:]), bias)

    def forward(self, x):
        kernel, stride, padding, output_padding = self.settings
        n, channels, *sizes = x.shape
        self._check(channels, self.weight.shape[0])
        Count.total += 2 * prod(x.shape) * prod(self.weight.shape[1:])
        out = [(size - 1) * stride - 2 * padding + kernel + output_padding for size in sizes]
        return Shape(n, self.weight.shape[1], *out)


class Linear(_Weighted):
    """Matrix product over the last axis: (..., in_features) to (..., out_features)."""

    def __init__(self, in_features, out_features, bias=True):
        self._add((out_features, in_features), out_features, in_features, bias)

    def forward(self, x):
        out_features, in_features = self.weight.shape
        self._check(x.shape[-1], in_features, "features")
        Count.total += 2 * prod(x.shape) * out_features
        return Shape(*x.shape[:-1], out_features)


class Embedding(Module):
    """A vector for each of `count` whole numbers: (N,) to (N, features); they start standard normal."""

    def __init__(self, count, features):
        self.weight = ParameterShape(count, features, rule=normal(1.0))

    def forward(self, indices):
        return Shape(*indices.shape, self.weight.shape[1])


class _Norm(Module):
    """A normalisation with a weight and a bias for each channel or feature."""

    def _add(self, channels, bias=True):
        self.weight = ParameterShape(channels, rule=filled(1.0))
        if bias:
            self.bias = ParameterShape(channels, rule=filled(0.0))

    def forward(self, x):
        return x


class GroupNorm(_Norm):
    """Normalisation of each example's groups of channels: (N, channels, ...)."""

    def __init__(self, groups, channels, eps=1e-5):
        if channels % groups:
            raise ValueError(f"{channels} channels in {groups} groups")
        self._add(channels)


class BatchNorm2d(_Norm):
    """Normalisation of each channel over the batch: (N, channels, H, W).

    fewest: values per channel in the smallest call so far; training needs two.
    """

    def __init__(self, channels):
        self.fewest = math.inf
        self._add(channels)
        self.running_mean = ParameterShape(channels, rule=filled(0.0))
        self.running_var = ParameterShape(channels, rule=filled(1.0))
        self.num_batches_tracked = ParameterShape(rule=filled(0, np.int64))

    def forward(self, x):
        self.fewest = min(self.fewest, prod(x.shape) // x.shape[1])
        return x


class LayerNorm(_Norm):
    """Normalisation of the last axis: (..., features)."""

    def __init__(self, features, eps=1e-5):
        self._add(features)


class RMSNorm(_Norm):
    """Division of the last axis by its root mean square (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4)."""

    def __init__(self, features, eps=1e-5):
        self._add(features, bias=False)


class MaxPool2d(Module):
    """Largest value of each window of `size` x `size` pixels: (N, C, H, W) to (N, C, H / size, W / size)."""

    def __init__(self, size=2):
        self.size = size

    def forward(self, x):
        n, channels, height, width = x.shape
        return Shape(n, channels, height // self.size, width // self.size)


class Upsample(Module):
    """Larger by a whole factor: (N, C, H, W) to (N, C, scale H, scale W); mode "nearest" or "bilinear"."""

    def __init__(self, scale, mode="nearest"):
        self.scale = scale

    def forward(self, x):
        n, channels, height, width = x.shape
        return Shape(n, channels, height * self.scale, width * self.scale)


def relu(x):
    """Return max(x, 0), element by element."""
    return x


silu = gelu = sigmoid = tanh = exp = sqrt = sin = cos = relu


def softmax(x):
    """Return the softmax over the last axis."""
    return x


def cat(tensors, dim=1):
    """Return tensors joined along an axis."""
    shapes = [tensor.shape for tensor in tensors]
    if len({shape[:dim] + shape[dim + 1 :] for shape in shapes}) > 1:
        raise ValueError(f"shapes {shapes} do not fit")
    return Shape(*shapes[0][:dim], sum(shape[dim] for shape in shapes), *shapes[0][dim + 1 :])


def matmul(a, b):
    """Return (..., n, k) times (..., k, m)."""
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"shapes {a.shape} and {b.shape} do not fit")
    product = Shape(*a.shape[:-1], b.shape[-1])
    Count.total += 2 * prod(product.shape) * a.shape[-1]
    return product


def mean(x, dim):
    """Return the mean over an axis, or several, whose length becomes one."""
    dims = [axis % len(x.shape) for axis in ((dim,) if isinstance(dim, int) else dim)]
    return Shape(*(1 if axis in dims else size for axis, size in enumerate(x.shape)))


def resize(x, size):
    """Return (N, C, H, W) resized bilinearly to (H', W') of `size`, pixel centres aligned."""
    return Shape(*x.shape[:2], *size)


def fft2(x):
    """Return the discrete Fourier transform of real (N, C, H, W) over the last two axes, not scaled: (real, imaginary),
    each with all frequencies, (N, C, H, W)."""
    return x, x


def ifft2(real, imaginary):
    """Return the real part of the inverse of `fft2`, (N, C, H, W)."""
    return real


def timestep_embedding(timesteps, dim):
    """Return the sinusoidal embedding (N, dim) of time steps (N,)."""
    return Shape(timesteps.shape[0], dim)


def floating(x):
    """Return whole numbers as floating-point ones, in the precision of the computation."""
    return x


def precision():
    """Return the name of the type of parameters and computation, "float32" or "float64"."""
    return "float32"


def constant(array):
    """Return a numpy array as a tensor in the precision of the computation."""
    return Shape(*np.shape(array))


def scalar(value):
    """Return a number as a factor or summand of tensors, in full precision."""
    return Shape()


def checkpoint(func, inputs, modules, flag):
    """Return func(*inputs); with `flag`, its values on the way are computed again in the backward pass.

    modules: those whose parameters it uses.
    """
    return func(*inputs)

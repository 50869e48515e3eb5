"""The layer contract of networks with one source: every `nn` has all of it and computes the same.

Outputs are held to closed forms in numpy, gradients to difference quotients of the same function, both in float64.
"""

import math

import numpy as np
import pytest

from guided_diffusion_core.networks import nn as shapes
from guided_diffusion_core.networks.embedding import timestep_frequencies
from guided_diffusion_core.noise import NoiseTape


def conv(x, weight, bias, stride=1, padding=0, dilation=1, groups=1):
    """Return a convolution by its definition."""
    n, _, height, width = x.shape
    out_channels, per_group, kernel, _ = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    rows = (height + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    columns = (width + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    out = np.zeros((n, out_channels, rows, columns))
    for o in range(out_channels):
        first = o // (out_channels // groups) * per_group
        for i in range(kernel):
            for j in range(kernel):
                part = x[:, first : first + per_group, i * dilation :, j * dilation :]
                part = part[:, :, : (rows - 1) * stride + 1 : stride, : (columns - 1) * stride + 1 : stride]
                out[:, o] += np.einsum("nchw,c->nhw", part, weight[o, :, i, j])
    return out + bias.reshape(1, -1, 1, 1)


def transposed_conv(x, weight, bias, stride, padding, output_padding):
    """Return a transposed convolution: each input value adds its multiple of the kernel to the output."""
    n, channels, height, width = x.shape
    kernel = weight.shape[2]
    out = np.zeros((n, weight.shape[1], (height - 1) * stride + kernel, (width - 1) * stride + kernel))
    for y in range(height):
        for z in range(width):
            patch = np.einsum("nc,cokl->nokl", x[:, :, y, z], weight)
            out[:, :, y * stride : y * stride + kernel, z * stride : z * stride + kernel] += patch
    out = np.pad(out, ((0, 0), (0, 0), (0, output_padding), (0, output_padding)))
    rows = (height - 1) * stride - 2 * padding + kernel + output_padding
    columns = (width - 1) * stride - 2 * padding + kernel + output_padding
    return out[:, :, padding : padding + rows, padding : padding + columns] + bias.reshape(1, -1, 1, 1)


def normalised(x, axes, eps=1e-5):
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + eps)


def by_channel(values):
    return values.reshape(1, -1, 1, 1)


def group_norm(x, weight, bias):
    groups = x.reshape(x.shape[0], 2, -1)
    return normalised(groups, 2).reshape(x.shape) * by_channel(weight) + by_channel(bias)


def batch_norm(x, weight, bias, running_mean, running_var, num_batches_tracked):
    return normalised(x, (0, 2, 3)) * by_channel(weight) + by_channel(bias)


def bilinear(length, size):
    """Return the matrix (size, length) of bilinear resizing along one axis, pixel centres aligned."""
    matrix = np.zeros((size, length))
    for row in range(size):
        place = max((row + 0.5) * length / size - 0.5, 0)
        low = min(int(place), length - 1)
        high = min(low + 1, length - 1)
        matrix[row, low] += 1 - (place - low)
        matrix[row, high] += place - low
    return matrix


def resized(x, size):
    return bilinear(x.shape[2], size[0]) @ x @ bilinear(x.shape[3], size[1]).T


def max_pool(x, size):
    n, channels, height, width = x.shape
    x = x[:, :, : height // size * size, : width // size * size]
    return x.reshape(n, channels, height // size, size, width // size, size).max((3, 5))


def phi(x):
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    values = np.exp(x - x.max(-1, keepdims=True))
    return values / values.sum(-1, keepdims=True)


IMAGE = (2, 4, 6, 5)
# name -> (layer from an nn, shape of its input, closed form of (input, *parameters and buffers in order))
LAYERS = {
    "Conv2d": (lambda nn: nn.Conv2d(4, 6, 3, padding=1), IMAGE, lambda x, w, b: conv(x, w, b, padding=1)),
    "Conv2d, all settings": (
        lambda nn: nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
        IMAGE,
        lambda x, w, b: conv(x, w, b, 2, 2, 2, 2),
    ),
    "Conv2d without bias": (lambda nn: nn.Conv2d(4, 3, 1, bias=False), IMAGE, lambda x, w: conv(x, w, np.zeros(3))),
    "ConvTranspose2d": (
        lambda nn: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
        IMAGE,
        lambda x, w, b: transposed_conv(x, w, b, 2, 1, 1),
    ),
    "Linear": (lambda nn: nn.Linear(5, 3), (2, 3, 5), lambda x, w, b: x @ w.T + b),
    "Linear without bias": (lambda nn: nn.Linear(5, 3, bias=False), (4, 5), lambda x, w: x @ w.T),
    "GroupNorm": (lambda nn: nn.GroupNorm(2, 4), IMAGE, group_norm),
    "BatchNorm2d": (lambda nn: nn.BatchNorm2d(4), IMAGE, batch_norm),
    "LayerNorm": (lambda nn: nn.LayerNorm(8), (2, 3, 8), lambda x, w, b: normalised(x, -1) * w + b),
    "RMSNorm": (
        lambda nn: nn.RMSNorm(8),
        (2, 3, 8),
        lambda x, w: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w,
    ),
    "ReLU": (lambda nn: nn.ReLU(), IMAGE, lambda x: np.maximum(x, 0)),
    "LeakyReLU": (lambda nn: nn.LeakyReLU(), IMAGE, lambda x: np.where(x > 0, x, 0.01 * x)),
    "SiLU": (lambda nn: nn.SiLU(), IMAGE, lambda x: x * sigmoid(x)),
    "GELU": (lambda nn: nn.GELU(), IMAGE, lambda x: x * phi(x)),
    "Sigmoid": (lambda nn: nn.Sigmoid(), IMAGE, sigmoid),
    "Identity": (lambda nn: nn.Identity(), IMAGE, lambda x: x),
    "MaxPool2d": (lambda nn: nn.MaxPool2d(2), IMAGE, lambda x: max_pool(x, 2)),
    "MaxPool2d of 3": (lambda nn: nn.MaxPool2d(3), IMAGE, lambda x: max_pool(x, 3)),
    "Upsample": (lambda nn: nn.Upsample(2), IMAGE, lambda x: x.repeat(2, 2).repeat(2, 3)),
    "Upsample, bilinear": (lambda nn: nn.Upsample(3, "bilinear"), IMAGE, lambda x: resized(x, (18, 15))),
    "Sequential": (
        lambda nn: nn.Sequential(nn.Linear(5, 3), nn.SiLU()),
        (2, 5),
        lambda x, w, b: (x @ w.T + b) * sigmoid(x @ w.T + b),
    ),
    "zeroed": (lambda nn: nn.zeroed(nn.Linear(5, 3)), (2, 5), lambda x, w, b: x @ w.T + b),
}
# name -> (function of an nn and its input, shape of that, closed form)
FUNCTIONS = {
    "relu": (lambda nn, x: nn.relu(x), IMAGE, lambda x: np.maximum(x, 0)),
    "silu": (lambda nn, x: nn.silu(x), IMAGE, lambda x: x * sigmoid(x)),
    "gelu": (lambda nn, x: nn.gelu(x), IMAGE, lambda x: x * phi(x)),
    "sigmoid": (lambda nn, x: nn.sigmoid(x), IMAGE, sigmoid),
    "tanh": (lambda nn, x: nn.tanh(x), IMAGE, np.tanh),
    "exp": (lambda nn, x: nn.exp(x), IMAGE, np.exp),
    "sqrt": (lambda nn, x: nn.sqrt(x * x + nn.scalar(1.5)), IMAGE, lambda x: np.sqrt(x**2 + 1.5)),
    "sin": (lambda nn, x: nn.sin(x), IMAGE, np.sin),
    "cos": (lambda nn, x: nn.cos(x), IMAGE, np.cos),
    "fft2": (
        lambda nn, x: nn.cat(nn.fft2(x)),
        IMAGE,
        lambda x: np.concatenate([np.fft.fft2(x).real, np.fft.fft2(x).imag], 1),
    ),
    "ifft2": (lambda nn, x: nn.ifft2(x, x * x), IMAGE, lambda x: np.fft.ifft2(x + 1j * x**2).real),
    "softmax": (lambda nn, x: nn.softmax(x), IMAGE, softmax),
    "cat": (lambda nn, x: nn.cat([x, x * x]), IMAGE, lambda x: np.concatenate([x, x**2], 1)),
    "cat of another axis": (lambda nn, x: nn.cat([x, x * x], dim=3), IMAGE, lambda x: np.concatenate([x, x**2], 3)),
    "matmul": (lambda nn, x: nn.matmul(x, x.permute(0, 1, 3, 2)), IMAGE, lambda x: x @ x.swapaxes(2, 3)),
    "mean": (lambda nn, x: nn.mean(x, -1), IMAGE, lambda x: x.mean(-1, keepdims=True)),
    "mean over two": (lambda nn, x: nn.mean(x, (2, 3)), IMAGE, lambda x: x.mean((2, 3), keepdims=True)),
    "resize": (lambda nn, x: nn.resize(x, (4, 9)), IMAGE, lambda x: resized(x, (4, 9))),
    "constant": (lambda nn, x: x * nn.constant(np.arange(5.0)), IMAGE, lambda x: x * np.arange(5.0)),
    "slices and shapes": (
        lambda nn, x: x[:, -1:].reshape(2, 5, -1) - x[:, 1:2, :5].reshape(2, 5, 5)[:, :, :1] / nn.scalar(3.0),
        IMAGE,
        lambda x: x[:, -1:].reshape(2, 5, -1) - x[:, 1:2, :5].reshape(2, 5, 5)[:, :, :1] / 3,
    ),
    "checkpoint": (lambda nn, x: nn.checkpoint(lambda y: y * y, (x,), (), True), IMAGE, lambda x: x * x),
}


class Wrapped:
    """Make a module of one layer or function, from an nn: parameters "layer.NAME"."""

    def __new__(cls, nn, build=None, function=None):
        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                if build:
                    self.layer = build(nn)

            def forward(self, x):
                return self.layer(x) if build else function(nn, x)

        return Network()


def values(build, shape):
    """Return the input of a layer, and its parameters and buffers by name."""
    generator = np.random.default_rng(3)
    x = generator.uniform(0.1, 1.5, shape) * np.where(generator.uniform(size=shape) > 0.5, 1, -1)  # no kink at 0
    parameters = Wrapped(shapes, build).parameters() if build else {}
    state = {}
    for name, value in parameters.items():
        state[name] = generator.uniform(0.2, 1.0, value.shape)
        if name.endswith("num_batches_tracked"):
            state[name] = np.zeros((), np.int64)
    return x, state


CASES = {name: (build, None, shape, form) for name, (build, shape, form) in LAYERS.items()}
CASES |= {name: (None, function, shape, form) for name, (function, shape, form) in FUNCTIONS.items()}


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients(backend, float64, name):
    build, function, shape, closed_form = CASES[name]
    runtime = backend.module("runtime")
    x, state = values(build, shape)
    expected = closed_form(x, *state.values())
    known = Wrapped(shapes, build, function)(shapes.Shape(*shape))
    assert known.shape == expected.shape

    network = Wrapped(backend.module("networks.nn"), build, function)
    runtime.load_state(network, state)
    assert {key: value.shape for key, value in runtime.state_arrays(network).items()} == {
        key: value.shape for key, value in state.items()
    }
    network.train()
    tensor = runtime.tracked_copy(runtime.to_tensor(x))
    out = network(tensor)
    np.testing.assert_allclose(runtime.to_numpy(out), expected, rtol=1e-10, atol=1e-12)

    # the slope along a random direction of the input and of all parameters at once
    factors = np.random.default_rng(4).standard_normal(expected.shape)
    named = [(key, value) for key, value in network.named_parameters() if "running" not in key and "num_b" not in key]
    loss = (out * runtime.to_tensor(factors)).sum()
    found = backend.module("optim").gradients(loss, [tensor, *(value for _, value in named)])
    gradients = dict(zip(["x", *(key for key, _ in named)], map(runtime.to_numpy, found)))
    for key, gradient in gradients.items():
        direction = np.random.default_rng(5).standard_normal(gradient.shape)

        def value_at(step, key=key, direction=direction):
            moved = {**state, "x": x}
            moved[key] = moved[key] + step * direction
            return (closed_form(moved.pop("x"), *moved.values()) * factors).sum()

        slope = (value_at(1e-5) - value_at(-1e-5)) / 2e-5
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-7), key


def test_every_nn_has_the_whole_contract(backend):
    computing = backend.module("networks.nn")
    for name in (*shapes.LAYERS, *shapes.FUNCTIONS):
        assert callable(getattr(shapes, name)), name
        assert callable(getattr(computing, name)), name
    special = {"Network", "Module", "ModuleList", "Parameter", "Embedding", "Dropout", "Dropout2d"}
    special |= {"timestep_embedding", "scalar", "floating", "precision"}
    tested = {name.partition(",")[0].partition(" ")[0] for name in CASES}
    assert tested >= {*shapes.LAYERS, *shapes.FUNCTIONS} - special


def test_embedding_and_timesteps(backend, float64):
    runtime = backend.module("runtime")
    nn = backend.module("networks.nn")
    layer = nn.Embedding(5, 3)
    table = np.arange(15.0).reshape(5, 3)
    runtime.load_state(layer, {"weight": table})
    found = layer(runtime.to_tensor(np.array([4, 0, 4])))
    np.testing.assert_array_equal(runtime.to_numpy(found), table[[4, 0, 4]])
    assert shapes.Embedding(5, 3)(shapes.Shape(3)).shape == (3, 3)
    assert nn.precision() == "float64" and shapes.precision() == "float32"
    t = np.array([0, 3, 900])
    floating = runtime.to_numpy(nn.floating(runtime.to_tensor(t)))
    assert floating.dtype == np.float64 and (floating == t).all()
    angles = t[:, None] * timestep_frequencies(8, "float64")
    embedding = runtime.to_numpy(nn.timestep_embedding(runtime.to_tensor(t), 8))
    np.testing.assert_allclose(embedding, np.concatenate([np.cos(angles), np.sin(angles)], 1), atol=1e-12)
    assert shapes.timestep_embedding(shapes.Shape(3), 8).shape == (3, 8)


@pytest.mark.parametrize("kind, mask_shape", [("Dropout", (4, 3, 3)), ("Dropout2d", (4, 1, 1))])
def test_dropout_comes_from_the_tape(backend, kind, mask_shape):
    runtime = backend.module("runtime")
    nn = backend.module("networks.nn")
    layer = nn.Sequential(getattr(nn, kind)(0.5))
    x = np.ones((2, 4, 3, 3), np.float32)
    layer.train()
    backend.module("nn").set_dropout_noise(layer, NoiseTape(1), 7, (0, 5))
    found = runtime.to_numpy(layer(runtime.to_tensor(x)))
    expected = NoiseTape(1).keep_mask("dropout/0", mask_shape, 0.5, step=7, cases=(0, 5)) * x
    np.testing.assert_array_equal(found, expected)
    layer.eval()
    np.testing.assert_array_equal(runtime.to_numpy(layer(runtime.to_tensor(x))), x)


def test_initial_values_follow_their_rules():
    class Network(shapes.Network):
        def __init__(self):
            self.conv = shapes.Conv2d(64, 64, 3)
            self.norm = shapes.BatchNorm2d(8)
            self.names = shapes.Embedding(100, 100)
            self.free = shapes.Parameter(100, 100, deviation=0.02)
            self.gate = shapes.Parameter(5)
            self.gain = shapes.Parameter(5, value=1.0)
            self.last = shapes.zeroed(shapes.Linear(3, 2))

    tape = NoiseTape(0)
    state = {name: value.rule(tape, name, value.shape) for name, value in Network().parameters().items()}
    bound = 1 / math.sqrt(64 * 9)
    for name in ("conv.weight", "conv.bias"):
        assert 0.9 * bound < np.abs(state[name]).max() <= bound
    assert state["conv.weight"].std() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert state["names.weight"].std() == pytest.approx(1, rel=0.02)
    assert state["free"].std() == pytest.approx(0.02, rel=0.02)
    assert (state["gain"] == 1).all() and state["gain"].dtype == np.float32
    assert (state["norm.weight"] == 1).all() and (state["norm.running_var"] == 1).all()
    zeros = ("norm.bias", "norm.running_mean", "norm.num_batches_tracked", "gate", "last.weight", "last.bias")
    assert not any(state[name].any() for name in zeros)
    assert state["norm.num_batches_tracked"].dtype == np.int64
    assert all(value.dtype == np.float32 for name, value in state.items() if name != "norm.num_batches_tracked")


@pytest.mark.parametrize(
    "call",
    [
        lambda: shapes.Conv2d(3, 4, 3)(shapes.Shape(1, 4, 8, 8)),
        lambda: shapes.Linear(3, 4)(shapes.Shape(1, 4)),
        lambda: shapes.Shape(1, 3) + shapes.Shape(1, 4),
        lambda: shapes.cat([shapes.Shape(1, 3, 4, 4), shapes.Shape(1, 3, 4, 5)]),
        lambda: shapes.matmul(shapes.Shape(2, 3, 4), shapes.Shape(2, 3, 4)),
        lambda: shapes.Shape(2, 3).reshape(4, 2),
        lambda: shapes.GroupNorm(3, 4),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError):
        call()

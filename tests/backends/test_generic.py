"""The kernels for a CPU and the generic operators of a GPU, each against float64: values and gradients.

The Fourier filter is in `tests/networks/test_fourier.py` and AdamW in `tests/training/test_training.py`, both ways too.
"""

import numpy as np
import pytest
import torch
from support.backends import BACKENDS, Backend
from support.generic import KINDS, only_generic, operators
from support.small import NETWORK, NETWORK_V1, RandomDataset, computing, small_config
from torch.nn import functional as F

from guided_diffusion_core.networks.fourier import column_transform, row_inverse, row_transform
from parity.rule import EPS, RULE

# Largest error of a value or gradient, as a share of the largest true one.
TOLERANCE = {"float32": 5e-6, "float64": 1e-13}
# The mean is kept in the precision of the values: 100 in float32 is within 4e-6.
FAR = "group norm far from 0"


def drawn(*shapes, mean=0.0):
    """Draw an array of each shape: the first with a mean, the others around 0."""
    generator = np.random.default_rng(sum(map(len, shapes)))
    arrays = [generator.standard_normal(shape) for shape in shapes]
    arrays[0] += mean
    return arrays


def group_norm(groups):
    def exact(x, weight, bias):
        # torch's own takes the variance as E[x^2] - E[x]^2, which far from 0 is not exact in float64 either
        values = x.reshape(len(x), groups, -1)
        centred = values - values.mean(2, keepdim=True)
        normal = centred / ((centred**2).mean(2, keepdim=True) + 1e-5).sqrt()
        per_channel = (1, -1) + (1,) * (x.dim() - 2)
        return normal.reshape(x.shape) * weight.reshape(per_channel) + bias.reshape(per_channel)

    return lambda nn: lambda x, weight, bias: nn.group_norm.group_norm(x, weight, bias, groups, 1e-5), exact


def activated(groups):
    """The activation after a norm keeps nothing of its own: its gradient comes out of what the norm keeps."""
    normalised, exact = group_norm(groups)
    return (
        lambda nn: lambda *given: nn.SiLU()(normalised(nn)(*given)),
        lambda *given: F.silu(exact(*given)),
    )


def convolution(nn):
    return lambda x, weight, bias: nn.winograd.conv2d(x, weight, bias)


def exact_convolution(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def softmax(x):
    return torch.softmax(x, -1)


# name -> (function of Jittor's nn, function of torch, arrays)
CASES = {
    "group norm": (*group_norm(4), drawn((2, 8, 6, 5), (8,), (8,))),
    "group norm, one group": (*group_norm(1), drawn((3, 5, 7, 3), (5,), (5,))),
    "group norm, a group for each channel": (*group_norm(3), drawn((1, 3, 9, 9), (3,), (3,))),
    "group norm of one row": (*group_norm(2), drawn((2, 6, 11), (6,), (6,))),
    "group norm in stages": (*group_norm(2), drawn((2, 4, 32, 16), (4,), (4,))),
    FAR: (*group_norm(2), drawn((1, 4, 64, 64), (4,), (4,), mean=100.0)),
    "SiLU": (lambda nn: nn.SiLU(), F.silu, drawn((3, 4, 5))),
    "SiLU after group norm": (*activated(2), drawn((2, 6, 5, 4), (6,), (6,))),
    "SiLU after group norm, one image": (*activated(32), drawn((1, 64, 3, 1), (64,), (64,))),
    "convolution": (convolution, exact_convolution, drawn((1, 64, 16, 16), (70, 64, 3, 3), (70,))),
    "convolution of odd sides": (convolution, exact_convolution, drawn((2, 65, 5, 7), (66, 65, 3, 3), (66,))),
    "convolution of few channels": (convolution, exact_convolution, drawn((2, 3, 8, 8), (5, 3, 3, 3), (5,))),
    "product": (lambda nn: nn.batched_matmul, torch.bmm, drawn((3, 5, 7), (3, 7, 2))),
    "product of vectors": (lambda nn: nn.batched_matmul, torch.bmm, drawn((2, 1, 9), (2, 9, 1))),
    "product of one matrix": (lambda nn: nn.batched_matmul, torch.bmm, drawn((1, 33, 64), (1, 64, 33))),
    "softmax": (lambda nn: nn.softmax, softmax, drawn((2, 3, 8))),
    "softmax of large values": (lambda nn: nn.softmax, softmax, drawn((4, 9), mean=1000.0)),
}
needs_both = pytest.mark.skipif(len(BACKENDS) < 2, reason="Jittor's operators against PyTorch's in float64")


def exact_results(function, arrays):
    """Return torch's value and gradients in float64 of a weighted sum of the result, and the weights."""
    given = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]
    result = function(*given)
    factors = np.random.default_rng(1).standard_normal(result.shape)
    gradients = torch.autograd.grad((result * torch.tensor(factors)).sum(), given)
    return [value.detach().numpy() for value in (result, *gradients)], factors


def results(function, arrays, factors, precision):
    """Return Jittor's value and gradients of the same."""
    backend = Backend("jittor")
    runtime = backend.module("runtime")
    optim = backend.module("optim")
    given = [runtime.tracked_copy(runtime.to_tensor(array, precision)) for array in arrays]
    result = function(*given)
    gradients = optim.gradients((result * runtime.to_tensor(factors, precision)).sum(), given)
    return [runtime.to_numpy(value) for value in (result, *gradients)]


@needs_both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_float64(name, precision, kind):
    function, exact, arrays = CASES[name]
    backend = Backend("jittor")
    arrays = [array.astype(precision) for array in arrays]
    truths, factors = exact_results(exact, arrays)
    with computing(precision, backend), operators(kind, backend):
        found = results(function(backend.module("nn")), arrays, factors, precision)
    tolerance = (1 + (name == FAR)) * TOLERANCE[precision]
    for value, truth in zip(found, truths, strict=True):
        assert value.dtype == precision and value.shape == truth.shape
        assert np.abs(value - truth).max() <= tolerance * np.abs(truth).max()


@needs_both
@pytest.mark.parametrize("name", ["group norm", "product", "convolution"])
def test_a_kernel_where_only_generic_operators_may_compute_is_seen(name):
    function, _, arrays = CASES[name]
    backend = Backend("jittor")
    with only_generic(backend):
        backend.module("runtime").use_generic(False)
        with pytest.raises(AssertionError, match="on a CPU alone"):
            results(function(backend.module("nn")), arrays, 1.0, "float32")


@pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor's operators")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [NETWORK, NETWORK_V1, {**NETWORK_V1, "use_checkpoint": True}])
def test_no_convolution_of_a_step_is_spread_out_in_memory(settings, kind):
    """See that libraries compute all of them: if Jittor waits for something in the midst of the backward pass, it
    computes single gradients, for which it writes down every product of a convolution, of 7 axes."""
    backend = Backend("jittor")
    runtime = backend.module("runtime")
    loop = backend.module("train_util").create_train_loop(small_config(**settings), RandomDataset())
    image, mask = next(iter(loop.data))
    with computing("float32", backend), operators(kind, backend), runtime.jt.profile_scope() as report:
        loop.run_step(image, mask)
    counts = {row[0]: int(row[2]) for row in report[1:]}  # name of an operator -> number of its calls
    by_library = sum(count for name, count in counts.items() if name.startswith("mkl_conv"))
    written_down = sum(count for name, count in counts.items() if "DIM=7" in name)
    # Each of these operators calls one of the library. The calibration mask's small one is outside every `checkpoint`.
    assert by_library > 100 and written_down - by_library == ("use_checkpoint" in settings)


# ---- PyTorch's kernels, which serve wide layers and large images with the channels last ----

LAYERS = {
    "group norm": lambda nn: [nn.GroupNorm32(32, 128)],
    "SiLU after group norm": lambda nn: [nn.GroupNorm32(32, 128), nn.SiLU()],
    "convolution": lambda nn: [nn.Conv3x3(128, 128)],
    "residual branch": lambda nn: [nn.GroupNorm32(32, 128), nn.SiLU(), nn.Conv3x3(128, 130), nn.GroupNorm32(26, 130)],
}


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
@pytest.mark.parametrize("name", LAYERS)
def test_both_ways_of_pytorch_agree_by_the_rule(name):
    """Compare result and gradients with float64, by the rule of the parity suite: PyTorch's own operators are the
    reference, whose sums over many positions of channels that come last lose digits."""
    backend = Backend("pytorch")
    generator = torch.Generator().manual_seed(4)
    layers = torch.nn.Sequential(*LAYERS[name](backend.module("nn")))
    for param in layers.parameters():
        torch.nn.init.normal_(param, std=0.1, generator=generator)
    x = (3 + torch.randn(2, 128, 72, 72, generator=generator)).contiguous(memory_format=torch.channels_last)

    def computed(dtype):
        given = x.to(dtype).requires_grad_()
        network = layers.to(dtype)
        out = network(given)
        slope = torch.linspace(-1, 1, out.numel(), dtype=dtype).reshape(out.shape)
        return [
            value.detach().double() for value in (out, *torch.autograd.grad(out, [given, *network.parameters()], slope))
        ]

    truth = computed(torch.float64)
    with only_generic(backend):
        generic = computed(torch.float32)
    kernels = computed(torch.float32)
    assert not all(map(torch.equal, generic, kernels)), "these layers reach the kernels"
    for exact, first, second in zip(truth, generic, kernels):
        scale = float(exact.abs().max())
        own, error = (float((value - exact).abs().max()) for value in (first, second))
        assert error <= RULE.multiple * own + RULE.last_places * EPS["float32"] * scale
        assert own <= 2e-3 * scale


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
@pytest.mark.parametrize("name", ["group norm", "convolution", "residual branch"])
def test_a_kernel_of_pytorch_is_seen(name):
    backend = Backend("pytorch")
    layers = torch.nn.Sequential(*LAYERS[name](backend.module("nn")))
    x = torch.randn(1, 128, 72, 72).contiguous(memory_format=torch.channels_last)
    with only_generic(backend):
        backend.module("runtime").use_generic(False)
        with pytest.raises(AssertionError, match="on a CPU alone"):
            layers(x)


# ---- The Fourier transform as two products ----


@pytest.mark.parametrize("height, width", [(8, 8), (7, 5), (6, 9), (2, 2), (3, 1), (1, 4)])
def test_matrices_are_the_orthonormal_transform(height, width):
    x = np.random.default_rng(0).standard_normal((height, width))
    spectrum = np.fft.rfft(x, norm="ortho")
    count = width // 2 + 1
    half = x @ row_transform(width)
    np.testing.assert_allclose(half[:, :count] + 1j * half[:, count:], spectrum, atol=1e-14)
    column = np.concatenate([spectrum.real, spectrum.imag]).T @ column_transform(height)
    np.testing.assert_allclose(
        column[:, :height].T + 1j * column[:, height:].T, np.fft.rfft2(x, norm="ortho"), atol=1e-14
    )
    np.testing.assert_allclose(half @ row_inverse(width), x, atol=1e-14)
    inverse = column_transform(height).T
    np.testing.assert_allclose(inverse @ inverse.T, np.eye(2 * height), atol=1e-14)

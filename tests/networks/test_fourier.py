"""The FF-Parser's filter: against numpy's transform in float64, its gradients, and in float32."""

import numpy as np
import pytest
from support.generic import KINDS, operators

from guided_diffusion_core.config import ModelConfig
from guided_diffusion_core.networks.medsegdiff.plan import make_plan

SIZES = [(8, 8), (7, 7), (5, 8), (6, 9), (2, 2), (3, 1), (1, 1)]
TOLERANCE = 1e-13  # of the largest value; measured: 2e-15


def data(height, width, channels=3):
    """Draw the input (2, C, H, W), the weight (C, H, W // 2 + 1, 2) and factors of a weighted sum of the outputs."""
    generator = np.random.default_rng((height, width))
    x, factors = generator.standard_normal((2, 2, channels, height, width))
    return x, generator.standard_normal((channels, height, width // 2 + 1, 2)), factors


def oracle(x, weight):
    """Apply the filter in numpy's float64."""
    spectrum = np.fft.rfft2(x, norm="ortho") * (weight[..., 0] + 1j * weight[..., 1])
    return np.fft.irfft2(spectrum, s=x.shape[2:], norm="ortho")


def slopes(function, array):
    """Return the gradient of a number that is linear in the array, by finite differences, exact up to rounding."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        step = np.zeros_like(array)
        step[index] = 1
        gradient[index] = (function(array + step) - function(array - step)) / 2
    return gradient


def filtered(backend, x, weight, factors, dtype):
    """Return the output and the gradients of x and weight by one backend, numpy."""
    runtime, fourier, optim = (backend.module(name) for name in ("runtime", "fourier", "optim"))
    given = [runtime.tracked_copy(runtime.to_tensor(value, dtype)) for value in (x, weight)]
    result = fourier.spectral_filter(*given)
    gradients = optim.gradients((result * runtime.to_tensor(factors, dtype)).sum(), given)
    return [runtime.to_numpy(value) for value in (result, *gradients)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_filter_and_gradients_in_float64(backend, float64, size, kind):
    """Compare both backends with the same numbers, and so with each other."""
    x, weight, factors = data(*size)
    expected = [
        oracle(x, weight),
        slopes(lambda value: (oracle(value, weight) * factors).sum(), x),
        slopes(lambda value: (oracle(x, value) * factors).sum(), weight),
    ]
    with operators(kind, backend):
        results = filtered(backend, x, weight, factors, "float64")
    for found, truth in zip(results, expected, strict=True):
        assert found.dtype == np.float64 and found.shape == truth.shape
        assert np.abs(found - truth).max() <= TOLERANCE * np.abs(truth).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (63, 65)], ids=str)
def test_filter_in_float32(backend, size, kind):
    """Allow rounding: the measured error is 3e-7 of the largest value, 6e-7 as products of matrices."""
    x, weight, _ = data(*size)
    with operators(kind, backend):
        found = filtered(backend, x, weight, x, "float32")[0]
    truth = oracle(x.astype(np.float32), weight.astype(np.float32))
    assert found.dtype == np.float32 and np.abs(found - truth).max() <= 1e-6 * np.abs(truth).max()


def test_a_weight_of_one_changes_nothing(backend, float64):
    x, weight, factors = data(6, 7)
    weight[:] = [1, 0]
    found = filtered(backend, x, weight, factors, "float64")
    for value, truth in zip(found, (x, factors)):
        assert np.abs(value - truth).max() <= TOLERANCE * np.abs(truth).max()


def test_parsers_have_the_sizes_of_the_plan(backend):
    """Build the network at 96 px: the filters of the original have the sizes for 256 px."""
    plan = make_plan(ModelConfig(image_size=96, num_channels=32, num_heads=1, attention_resolutions="24", version="1"))
    network = backend.module("highway").GatedHighwayUNet(plan.highway)
    assert [tuple(parser.complex_weight.shape) for parser in network.ffparser] == [(8, 48, 25, 2), (16, 24, 13, 2)]

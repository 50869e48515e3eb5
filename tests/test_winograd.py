"""Winograd's convolution against the direct one in float64."""
import numpy as np
import pytest
from conftest import BACKENDS

from guided_diffusion_core import winograd

# float32, relative root mean square; measured 1.7e-6 at most, the direct convolution 1.1e-6.
ROUNDING = 5e-6


def test_matrices_convolve_a_tile_exactly():
    inputs, kernels, outputs = winograd.matrices()
    generator = np.random.default_rng(0)
    tile, kernel = generator.standard_normal((6, 6)), generator.standard_normal((3, 3))
    direct = [[(tile[i:i + 3, j:j + 3] * kernel).sum() for j in range(4)] for i in range(4)]
    found = outputs @ ((inputs @ tile.ravel()) * (kernels @ kernel.ravel()))
    assert abs(found - np.ravel(direct)).max() < 1e-13


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch's convolution")
@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize("shape", [(5, 128, 16, 16), (1, 130, 32, 52), (3, 128, 48, 8)])
def test_convolution_is_that_of_float64(shape, last):
    import torch

    from guided_diffusion_pt import _winograd

    generator = torch.Generator().manual_seed(0)
    arrays = [torch.randn(size, generator=generator, dtype=torch.float64)
              for size in (shape, (132, shape[1], 3, 3), (132,))]
    x, weight, bias = (array.float() for array in arrays)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert _winograd._pays(x, weight)
        found = _winograd._conv2d(x, weight, bias)
    truth = torch.nn.functional.conv2d(*arrays, padding=1)
    assert (found - truth).norm() < ROUNDING * truth.norm()
    assert found.is_contiguous() != last


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch's convolution")
def test_what_it_is_not_for_is_convolved_directly():
    import torch

    from guided_diffusion_pt import _winograd

    weight, x = torch.ones(128, 128, 3, 3), torch.ones(1, 128, 32, 32)
    assert not _winograd._pays(x, weight)  # gradients are wanted
    with torch.no_grad():
        assert _winograd._pays(x, weight)
        assert not _winograd._pays(torch.ones(1, 128, 30, 36), weight)  # no whole tiles
        assert not _winograd._pays(torch.ones(1, 128, 8, 8), weight)  # few
        assert not _winograd._pays(x.double(), weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not _winograd._pays(x, weight)


@pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor's convolution")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(5, 64, 16, 16), (1, 66, 32, 52), (3, 65, 48, 8)])
def test_jittors_convolution_is_that_of_float64(shape, threads):
    from scipy.signal import correlate2d

    from guided_diffusion_jt import _winograd, optim, runtime

    generator = np.random.default_rng(0)
    x, weight, bias, factors = [generator.standard_normal(size) for size in (
        shape, (70, shape[1], 3, 3), (70,), (shape[0], 70, *shape[2:]))]
    runtime.set_threads(threads)
    tensors = [runtime.to_tensor(array, "float32") for array in (x, weight, bias)]
    assert _winograd._pays(*tensors[:2])
    result = _winograd._conv2d(*tensors)
    given = optim.gradients((result * runtime.to_tensor(factors, "float32")).sum(), tensors)
    found, to_x, to_weight, to_bias = map(runtime.to_numpy, (result, *given))
    runtime.set_threads(1)

    def close(value, truth):
        return np.linalg.norm(value - truth) < ROUNDING * np.linalg.norm(truth)

    turned = weight[:, :, ::-1, ::-1]
    for n, o, c in ((0, 0, 0), (shape[0] - 1, 69, shape[1] - 1)):
        assert close(found[n, o], sum(map(_same, x[n], weight[o])) + bias[o])
        assert close(to_x[n, c], sum(map(_same, factors[n], turned[:, c])))
        padded = np.pad(x[:, c], ((0, 0), (1, 1), (1, 1)))
        assert close(to_weight[o, c], sum(correlate2d(*pair, "valid") for pair in zip(padded, factors[:, o])))
    assert close(to_bias, factors.sum((0, 2, 3)))


def _same(plane, kernel):
    from scipy.signal import correlate2d

    return correlate2d(plane, kernel, "same")

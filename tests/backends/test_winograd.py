"""Winograd's convolution, compared with the direct one in float64."""

import numpy as np
import pytest
from scipy.signal import correlate2d
from support.backends import BACKENDS

from guided_diffusion_core.networks import winograd

# float32, relative root mean square; measured 1.9e-6 at most, the direct convolution 1.1e-6.
ROUNDING = 5e-6
pytorch = pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch's convolution")


def test_matrices_convolve_a_tile_exactly():
    inputs, kernels, outputs = winograd.matrices()
    generator = np.random.default_rng(0)
    tile = generator.standard_normal((6, 6))
    kernel = generator.standard_normal((3, 3))
    direct = [[(tile[i : i + 3, j : j + 3] * kernel).sum() for j in range(4)] for i in range(4)]
    found = outputs @ ((inputs @ tile.ravel()) * (kernels @ kernel.ravel()))
    assert abs(found - np.ravel(direct)).max() < 1e-13


@pytorch
@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize(
    "shape", [(5, 128, 32, 32), (1, 130, 32, 52), (3, 128, 48, 8), (1, 600, 8, 160), (1, 128, 8, 1088)]
)
def test_convolution_and_gradients_are_those_of_float64(shape, last, monkeypatch):
    import torch

    from guided_diffusion_pt.kernels import winograd as kernel

    monkeypatch.setattr(kernel, "_CHUNK", 2**15)  # so that these are cut along images, rows and columns
    monkeypatch.setattr(kernel, "_BLOCK", 4096)
    generator = torch.Generator().manual_seed(0)
    arrays = [
        torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in (shape, (132, shape[1], 3, 3), (132,))
    ]
    x, weight, bias = (array.detach().float().requires_grad_() for array in arrays)
    source = x.contiguous(memory_format=torch.channels_last) if last else x
    assert kernel.pays(source, weight)
    found = kernel.conv2d(source, weight, bias)
    truth = torch.nn.functional.conv2d(*arrays, padding=1)
    assert found.is_contiguous() != last
    direction = torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(found, (x, weight, bias), direction.float())
    assert gradients[1].is_contiguous()
    expected = torch.autograd.grad(truth, arrays, direction)
    for value, right in zip((found, *gradients), (truth, *expected)):
        assert (value - right).norm() < ROUNDING * right.norm()


@pytorch
def test_what_it_is_not_for_is_convolved_directly():
    import torch

    from guided_diffusion_pt.kernels import winograd as kernel

    weight = torch.ones(128, 128, 3, 3)
    x = torch.ones(1, 128, 32, 32)
    assert kernel.pays(x, weight)
    assert not kernel.pays(torch.ones(1, 128, 30, 36), weight)  # no whole tiles
    assert not kernel.pays(torch.ones(1, 128, 8, 8), weight)  # few
    assert not kernel.pays(torch.ones(1, 96, 32, 32), torch.ones(128, 96, 3, 3))  # narrow
    assert not kernel.pays(x.double(), weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernel.pays(x, weight)
    last = torch.ones(1, 128, 8, 8).contiguous(memory_format=torch.channels_last)
    assert not kernel.conv2d(last, weight, weight[:, 0, 0, 0]).is_contiguous()


@pytorch
def test_a_step_does_not_depend_on_the_gradients_order_in_memory():
    import torch

    from guided_diffusion_pt.optim import AdamW

    gradient = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    params = [torch.ones(4, 4, 3, 3) for _ in range(2)]
    for param, order in zip(params, (torch.contiguous_format, torch.channels_last)):
        AdamW([param]).step([gradient.contiguous(memory_format=order)], 0.1)
    assert torch.equal(*params)


@pytorch
@pytest.mark.parametrize("activated", [False, True], ids=["plain", "silu"])
def test_group_norm_of_large_images_with_the_channels_last_keeps_its_digits(activated):
    import torch

    from guided_diffusion_pt.kernels import group_norm
    from guided_diffusion_pt.nn import GroupNorm32, SiLU

    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(2, 64, 128, 96, generator=generator, dtype=torch.float64) + 1
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    exact = torch.nn.GroupNorm(32, 64).double()
    layer = GroupNorm32(32, 64)
    with torch.no_grad():
        for param in exact.parameters():
            param.normal_(generator=generator)
    layer.load_state_dict(exact.state_dict())
    source = x.clone().requires_grad_()
    last = x.float().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert group_norm.serves(last)
    truth = exact(source)
    found = layer(last)
    if activated:
        truth = torch.nn.functional.silu(truth)
        found = SiLU()(found)
        assert found.grad_fn.saved_tensors[0].data_ptr() == last.data_ptr()  # nothing else than the input is kept
    expected = torch.autograd.grad(truth, (source, *exact.parameters()), direction)
    gradients = torch.autograd.grad(found, (last, *layer.parameters()), direction.float())
    assert not found.is_contiguous()
    for value, right in zip((found, *gradients), (truth, *expected)):
        assert (value - right).norm() < 5e-7 * right.norm()  # measured 1.3e-7 at most; torch's own 3e-6


@pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor's convolution")
@pytest.mark.parametrize("shape, threads", [((5, 64, 16, 16), 1), ((1, 66, 32, 52), 3), ((3, 65, 48, 8), 2)])
def test_jittors_convolution_and_gradients_are_those_of_float64(shape, threads):
    from guided_diffusion_jt import optim, runtime
    from guided_diffusion_jt.kernels import winograd as kernel

    generator = np.random.default_rng(0)
    x, weight, bias, factors = [
        generator.standard_normal(size) for size in (shape, (70, shape[1], 3, 3), (70,), (shape[0], 70, *shape[2:]))
    ]
    runtime.set_threads(threads)
    tensors = [runtime.to_tensor(array, "float32") for array in (x, weight, bias)]
    assert kernel.pays(*tensors[:2])
    result = kernel.conv2d(*tensors)
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
    return correlate2d(plane, kernel, "same")

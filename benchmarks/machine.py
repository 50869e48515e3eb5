"""The limits of the machine: large matrix products, convolutions and copies, on the CPU or on a GPU."""

from importlib.util import find_spec

import numpy as np

from benchmarks.implementations import FLOAT32, TF32
from guided_diffusion_core.system.devices import CPU

BATCH = 4
KERNEL = 3  # side of the convolution's kernels


def limits(threads, device=CPU):
    """Return name -> (function that runs it once, number of its operations or bytes)."""
    return _limits_of_cpu(threads) if device == CPU else _limits_of_gpu(device)


def gpu_name(device):
    """Return the name of the GPU "cuda:N", or of the first one for "cuda"."""
    import torch

    return torch.cuda.get_device_name(device)


def _limits_of_cpu(threads):
    side = 1536  # of the square matrices
    generator = np.random.default_rng(0)
    a = generator.standard_normal((side, side), np.float32)
    b = generator.standard_normal((side, side), np.float32)
    source = np.ones(2**26, np.uint8)
    target = np.empty_like(source)
    found = {
        "matmul": (lambda: a @ b, 2 * side**3),
        "copy": (lambda: np.copyto(target, source), 2 * source.size),  # read and written
    }
    if find_spec("torch"):
        import torch

        torch.set_num_threads(threads)
        convolutions = _convolutions(256, 32, torch.float32, CPU)
        matmul = _matmul(side, torch.float32, CPU)
        found |= {"matmul, torch": matmul, **convolutions}
    return found


def _limits_of_gpu(device):
    """Return the limits of a GPU in each arithmetic, by PyTorch's operators. Each function waits for its result."""
    import torch

    source = torch.ones(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = {"copy": (_waiting(lambda: target.copy_(source), False), 2 * source.numel())}
    types = {FLOAT32: torch.float32, TF32: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for arithmetic, dtype in types.items():
        measured = {"matmul": _matmul(8192, dtype, device), **_convolutions(512, 128, dtype, device)}
        for name, (function, amount) in measured.items():
            found[f"{name}, {arithmetic}"] = (_waiting(function, arithmetic == TF32), amount)
    return found


def _waiting(function, tf32):
    """Return a function that allows TF32 or not, runs another one on the GPU, and waits until it is done."""
    import torch

    def run():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        function()
        torch.cuda.synchronize()

    return run


def _matmul(side, dtype, device):
    """Return (function, number of operations) of a product of two square matrices."""
    import torch

    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    return lambda: left @ right, 2 * side**3


def _convolutions(channels, pixels, dtype, device):
    """Return name -> (function, number of operations) of a convolution in both orders of memory."""
    import torch

    x = torch.randn(BATCH, channels, pixels, pixels, device=device).to(dtype)
    weight = torch.randn(channels, channels, KERNEL, KERNEL, device=device).to(dtype)
    last = x.contiguous(memory_format=torch.channels_last)
    last_weight = weight.contiguous(memory_format=torch.channels_last)

    def conv(images, kernels):
        with torch.no_grad():
            torch.nn.functional.conv2d(images, kernels, padding=1)

    operations = 2 * KERNEL**2 * channels**2 * BATCH * pixels**2
    return {
        "convolution": (lambda: conv(x, weight), operations),
        "convolution, channels last": (lambda: conv(last, last_weight), operations),
    }

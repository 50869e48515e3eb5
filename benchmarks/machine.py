"""The limits of the machine: large float32 matrix products, convolutions and copies."""

from importlib.util import find_spec

import numpy as np

SIDE = 1536  # of the square matrices
CHANNELS = 256  # of the convolution, in and out
PIXELS = 32  # side of the convolution's pictures
BATCH = 4
COPIED = 2**26  # bytes


def limits(threads):
    """Return name -> (function that runs it once, number of its operations or bytes)."""
    generator = np.random.default_rng(0)
    a = generator.standard_normal((SIDE, SIDE), np.float32)
    b = generator.standard_normal((SIDE, SIDE), np.float32)
    source = np.ones(COPIED, np.uint8)
    target = np.empty_like(source)
    found = {
        "matmul": (lambda: a @ b, 2 * SIDE**3),
        "copy": (lambda: np.copyto(target, source), 2 * COPIED),  # read and written
    }
    if find_spec("torch"):
        found |= _torch_limits(a, b, generator, threads)
    return found


def _torch_limits(a, b, generator, threads):
    """Return limits by PyTorch's operators, in the form of `limits`."""
    import torch

    torch.set_num_threads(threads)
    left = torch.from_numpy(a)
    right = torch.from_numpy(b)
    x = torch.from_numpy(generator.standard_normal((BATCH, CHANNELS, PIXELS, PIXELS), np.float32))
    weight = torch.from_numpy(generator.standard_normal((CHANNELS, CHANNELS, 3, 3), np.float32))
    last = x.contiguous(memory_format=torch.channels_last)

    def conv(images):
        with torch.no_grad():
            torch.nn.functional.conv2d(images, weight, padding=1)

    operations = 2 * 3**2 * CHANNELS**2 * BATCH * PIXELS**2  # of a 3 x 3 convolution
    return {
        "matmul, torch": (lambda: left @ right, 2 * SIDE**3),
        "convolution": (lambda: conv(x), operations),
        "convolution, channels last": (lambda: conv(last), operations),
    }

"""The machine's own limits: large float32 products, convolutions and copies, by the libraries that are
installed."""

from importlib.util import find_spec

import numpy as np

SIDE = 1536  # of the square matrices
# of the convolution
CHANNELS = 256
PIXELS = 32
COPIED = 2**26  # bytes


def limits(threads):
    """Name -> (function that does it once, its operations or bytes)."""
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    source = np.ones(COPIED, np.uint8)
    target = np.empty_like(source)
    found = {"matmul": (lambda: a @ b, 2 * SIDE**3), "copy": (lambda: np.copyto(target, source), 2 * COPIED)}
    if find_spec("torch"):
        found |= _of_torch(a, b, generator, threads)
    return found


def _of_torch(a, b, generator, threads):
    import torch

    torch.set_num_threads(threads)
    left = torch.from_numpy(a)
    right = torch.from_numpy(b)
    x = torch.from_numpy(generator.standard_normal((4, CHANNELS, PIXELS, PIXELS), np.float32))
    weight = torch.from_numpy(generator.standard_normal((CHANNELS, CHANNELS, 3, 3), np.float32))
    last = x.contiguous(memory_format=torch.channels_last)

    def conv(images):
        with torch.no_grad():
            torch.nn.functional.conv2d(images, weight, padding=1)

    operations = 18 * CHANNELS**2 * 4 * PIXELS**2
    return {
        "matmul, torch": (lambda: left @ right, 2 * SIDE**3),
        "convolution": (lambda: conv(x), operations),
        "convolution, channels last": (lambda: conv(last), operations),
    }

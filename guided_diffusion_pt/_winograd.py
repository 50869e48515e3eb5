"""3x3 convolutions of stride one by Winograd's algorithm, on a CPU in float32, without gradients.

All large products are those of matrices; between them stand copies of tiles, for which the channels come last
in memory. A few tiles at a time, so that they stay in the processor's caches.
"""
import torch as th
from torch.nn import functional as F

from guided_diffusion_core.winograd import KERNEL, TILE, matrices

_INPUTS, _KERNELS, _OUTPUTS = (th.from_numpy(matrix).float() for matrix in matrices())
# Measured on one core at 64 px: below these, the direct convolution of oneDNN is as fast.
_CHANNELS, _TILES = 128, 64
_CHUNK = 128  # tiles at a time


def _pays(x, weight):
    """Whether the convolution of x (N, C, H, W) with weight (O, C, 3, 3) is done here rather than directly."""
    # In training its rounding, three times the direct one's, would drive AdamW's steps apart.
    if th.is_grad_enabled():
        return False
    return (x.device.type == "cpu" and x.dtype == weight.dtype == th.float32
            and not th.is_autocast_enabled("cpu") and min(weight.shape[:2]) >= _CHANNELS and x.shape[2] % TILE == x.shape[3] % TILE == 0
            and x.shape[0] * x.shape[2] * x.shape[3] >= _TILES * TILE**2)


def _multiplied(weight):
    """The kernels' values: (36, C, O)."""
    out_channels, channels = weight.shape[:2]
    return (_KERNELS @ weight.reshape(-1, KERNEL**2).T).view(-1, out_channels, channels).transpose(1, 2)


def _padded(x):
    """(N, C, H, W) to (N, H + 2, W + 2, C), with a border of zeros."""
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()


def _input_tiles(padded):
    """All overlapping 6x6 tiles of (N, H + 2, W + 2, C), without a copy: (6, 6, N, H / 4, W / 4, C)."""
    n, height, width, channels = padded.shape
    image, row, column, channel = padded.stride()
    size = TILE + KERNEL - 1
    return padded.as_strided((size, size, n, height // TILE, width // TILE, channels),
                             (row, column, image, TILE * row, TILE * column, channel))


def _output_tiles(x):
    """The 4x4 tiles of (N, H, W, C), without a copy: (4, 4, N, H / 4, W / 4, C)."""
    n, height, width, channels = x.shape
    return x.view(n, height // TILE, TILE, width // TILE, TILE, channels).permute(2, 4, 0, 1, 3, 5)


def _chunks(tiles):
    """Slices of the axes of images and rows of (h, w, N, rows, columns, C) that hold about `_CHUNK` tiles."""
    n, rows, columns = tiles.shape[2:5]
    images, lines = max(1, _CHUNK // (rows * columns)), max(1, _CHUNK // columns)
    for image in range(0, n, images):
        for row in range(0, rows, lines):
            yield slice(image, image + images), slice(row, row + lines)


def _values(matrix, tiles):
    """matrix (k, h w) times tiles (h, w, ..., C): (k, tiles, C)."""
    return (matrix @ tiles.reshape(matrix.shape[1], -1)).view(matrix.shape[0], -1, tiles.shape[-1])


def _convolve(x, kernels, bias):
    """x (N, C, H, W), `_multiplied` kernels (36, C, O), bias (O,): (N, O, H, W), in memory as x is."""
    n, _, height, width = x.shape
    out = x.new_empty(n, height, width, kernels.shape[2])
    source, target = _input_tiles(_padded(x)), _output_tiles(out)
    for images, rows in _chunks(source):
        products = th.bmm(_values(_INPUTS, source[:, :, images, rows]), kernels)
        place = target[:, :, images, rows]
        th.add(_values(_OUTPUTS, products[:, None]).view(place.shape), bias, out=place)
    out = out.permute(0, 3, 1, 2)
    return out.contiguous() if x.is_contiguous() else out


def _conv2d(x, weight, bias):
    """A 3x3 convolution with a border of zeros, by whichever way pays.

    x: (N, C, H, W). weight: (O, C, 3, 3). bias: (O,). Returns (N, O, H, W).
    """
    if not _pays(x, weight):
        return F.conv2d(x, weight, bias, padding=1)
    return _convolve(x, _multiplied(weight), bias)

"""3x3 convolutions of stride one and their gradients by Winograd's algorithm, on a CPU in float32.

A tile of the output is Y = A^T [(G g G^T) * (B^T d B)] A, for a kernel g and a tile d of the input (Lavin & Gray 2016,
arXiv:1509.09308). Here the two-sided products are one product with a flattened tile.

All large products are matrix products. Between them tiles are copied, with the channels last in memory. A few tiles are
computed at a time, so that they stay in the processor's caches.

The result differs from the direct convolution by rounding only. With all 3x3 convolutions of two trained networks
computed this way (BraTS 2021, 4 slices, DDIM of 20 evaluations), samples move by 1e-6 at most. That is as much as when
the image changes in its last bit, and less than between the two orders in memory; no pixel of a mask changes. In
training, three steps of AdamW are as close to the original's as with direct convolutions.
"""

from itertools import product
from math import prod

import torch as th
from torch.nn import functional as F

from guided_diffusion_core.networks.winograd import KERNEL, TILE, matrices
from guided_diffusion_pt import runtime

# Matrices of flattened tiles: inputs (36, 36), kernels (36, 9), outputs (16, 36).
_INPUTS, _KERNELS, _OUTPUTS = (th.from_numpy(matrix).float() for matrix in matrices())
# Below this size the direct convolution of oneDNN is as fast, measured on one core at 64 px.
_CHANNELS = 128
_TILES = 64
# Tiles times channels that are multiplied at a time, and numbers of each row that are transformed at a time. An
# evaluation at 256 px takes 1.03 to 1.17 times as long (three measurements on a noisy machine) with a quarter of the
# first and half of the second; larger values take memory.
_CHUNK = 2**17
_BLOCK = 8192


def serves(x, channels):
    """Return whether the algorithm can take values like those of x and pays in layers with this number of channels."""
    return (
        x.device.type == "cpu"
        and not runtime.is_generic()
        and x.dtype == th.float32
        and not th.is_autocast_enabled("cpu")
        and channels >= _CHANNELS
    )


def pays(x, weight):
    """Return whether the convolution of x (N, C, H, W) with weight (O, C, 3, 3) is faster here than directly."""
    n, _, height, width = x.shape
    return (
        serves(x, min(weight.shape[:2]))
        and weight.dtype == x.dtype
        and height % TILE == width % TILE == 0
        and n * height * width >= _TILES * TILE**2
    )


def _transformed(weight):
    """Transform the kernels (O, C, 3, 3) to (36, C, O)."""
    out_channels, channels = weight.shape[:2]
    values = _KERNELS @ weight.reshape(-1, KERNEL**2).T  # (36, 9) times (9, O C)
    return values.view(-1, out_channels, channels).transpose(1, 2)  # (36, O C) to (36, O, C) to (36, C, O)


def _input_tiles(x, part):
    """Return the overlapping 6x6 tiles (6, 6, n, rows, columns, C) of a part of x (N, H, W, C) with a border of zeros.

    part: one of `_parts`. Only the part gets its border: one around the whole x would cost one more pass through the
          memory.
    """
    images, rows, columns = part[1:4]
    first, last, above, below = _reach(rows, x.shape[1])
    left, right, before, after = _reach(columns, x.shape[2])
    piece = F.pad(x[images, first:last, left:right], (0, 0, before, after, above, below))
    n, height, width, channels = piece.shape
    image, row, column, channel = piece.stride()
    size = TILE + KERNEL - 1
    # A view without a copy: tiles start every 4 pixels and are 6 pixels wide, so that neighbours overlap by 2.
    return piece.as_strided(
        (size, size, n, (height - 2) // TILE, (width - 2) // TILE, channels),
        (row, column, image, TILE * row, TILE * column, channel),
    )


def _reach(tiles, size):
    """Return the range that a slice of tiles reads on an axis: start, end, zeros before it and zeros after it.

    size: positions of the axis.
    """
    start = TILE * tiles.start - 1
    end = TILE * tiles.stop + 1
    return max(start, 0), min(end, size), int(start < 0), int(end > size)


def _output_tiles(x):
    """Return the 4x4 tiles (4, 4, N, H / 4, W / 4, C) of x (N, H, W, C), without a copy."""
    n, height, width, channels = x.shape
    tiles = x.view(n, height // TILE, TILE, width // TILE, TILE, channels)  # (N, H / 4, 4, W / 4, 4, C)
    return tiles.permute(2, 4, 0, 1, 3, 5)


def _parts(tiles, count):
    """Yield indices of tiles (h, w, N, rows, columns, C) that select about `count` tiles each, in the order in which
    the tiles lie when flattened."""
    sizes = tiles.shape[2:5]
    _, rows, columns = sizes
    # A part is some whole images, or else some whole rows of tiles, or else some tiles of a row.
    steps = (max(1, count // (rows * columns)), max(1, count // columns), max(1, min(count, columns)))
    starts_by_axis = [range(0, size, step) for size, step in zip(sizes, steps)]
    for starts in product(*starts_by_axis):
        axes = [slice(start, min(start + step, size)) for start, step, size in zip(starts, steps, sizes)]
        yield (..., *axes, slice(None))


def _blocks(tiles):
    """Yield small `_parts` of tiles, each with the place of its numbers in a row of all numbers: (index, slice)."""
    channels = tiles.shape[5]
    start = 0
    for part in _parts(tiles, _BLOCK // channels):
        end = start + channels * prod(axis.stop - axis.start for axis in part[1:4])
        yield part, slice(start, end)
        start = end


def _values(matrix, tiles):
    """Multiply matrix (k, h w) with tiles (h, w, N, rows, columns, C); returns (k, tiles, C)."""
    values = tiles.new_empty(len(matrix), tiles[0, 0].numel())
    for part, place in _blocks(tiles):
        th.mm(matrix, tiles[part].reshape(matrix.shape[1], -1), out=values[:, place])
    return values.view(len(matrix), -1, tiles.shape[5])


def _convolve(x, kernels, bias):
    """Convolve x (N, C, H, W) with `_transformed` kernels (36, C, O) and a bias (O,).

    Returns (N, O, H, W) in x's order in memory.
    """
    n, _, height, width = x.shape
    out = x.new_empty(n, height, width, kernels.shape[2])
    source = x.permute(0, 2, 3, 1)  # (N, H, W, C)
    target = _output_tiles(out)
    for part in _parts(target, _CHUNK // max(kernels.shape[1:])):
        # One matrix product for each of the 36 values: (36, tiles, C) times (36, C, O), then (36, tiles O).
        products = th.bmm(_values(_INPUTS, _input_tiles(source, part)), kernels).view(len(_INPUTS), -1)
        goals = target[part]
        for block, place in _blocks(goals):
            # (16, 36) times (36, some tiles O): the 4x4 tiles are written to their places in `out`.
            goal = goals[block]
            th.add((_OUTPUTS @ products[:, place]).view(goal.shape), bias, out=goal)
    out = out.permute(0, 3, 1, 2)  # (N, O, H, W)
    return out.contiguous() if x.is_contiguous() else out


def _kernel_gradient(x, gradient):
    """Return the gradient of the kernels (O, C, 3, 3) from x (N, C, H, W) and the output's gradient (N, O, H, W)."""
    source = x.permute(0, 2, 3, 1)  # (N, H, W, C)
    gradients = _output_tiles(gradient.permute(0, 2, 3, 1).contiguous())
    total = x.new_zeros(len(_INPUTS), x.shape[1], gradient.shape[1])  # (36, C, O), the transformed kernels' gradient
    for part in _parts(gradients, _CHUNK // max(total.shape[1:])):
        values = _values(_INPUTS, _input_tiles(source, part))
        total.baddbmm_(values.transpose(1, 2), _values(_OUTPUTS.T, gradients[part]))
    kernels = _KERNELS.T @ total.transpose(1, 2).reshape(len(_INPUTS), -1)  # (9, O C)
    return kernels.T.reshape(gradient.shape[1], x.shape[1], KERNEL, KERNEL).contiguous()


class _Convolution(th.autograd.Function):
    """A convolution whose gradients use Winograd's algorithm too."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _convolve(x, _transformed(weight), bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        # The gradient of x is the convolution of the output's gradient with the kernels turned by half a circle, and
        # with input and output channels exchanged.
        turned = weight.flip(2, 3).transpose(0, 1).contiguous()
        to_x = _convolve(gradient, _transformed(turned), gradient.new_zeros(len(turned)))
        return to_x, _kernel_gradient(x, gradient), gradient.sum((0, 2, 3))


def conv2d(x, weight, bias):
    """Convolve 3x3 with a border of zeros, by the faster algorithm.

    x: (N, C, H, W). weight: (O, C, 3, 3). bias: (O,). Returns (N, O, H, W) in x's order in memory.
    """
    if pays(x, weight):
        return _Convolution.apply(x, weight, bias)
    # With the channels last, oneDNN is slow in the backward pass, and torch copies the kernels in every call.
    on_cpu = x.device.type == "cpu"
    if on_cpu and not x.is_contiguous() and (th.is_grad_enabled() or weight.numel() > x.numel()):
        return F.conv2d(x.contiguous(), weight, bias, padding=1).contiguous(memory_format=th.channels_last)
    return F.conv2d(x, weight, bias, padding=1)

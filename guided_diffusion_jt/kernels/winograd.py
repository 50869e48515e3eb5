"""3x3 convolutions of stride one and their gradients by Winograd's algorithm, on a CPU in float32.

A tile of the output is Y = A^T [(G g G^T) * (B^T d B)] A, for a kernel g and a tile d of the input (Lavin & Gray 2016,
arXiv:1509.09308).

The tiles of a channel lie next to each other, so that a transform is a sum of rows. The products of all channels are
taken in blocks of 6 output channels and 16 tiles, whose sums stay in registers. A few rows of tiles are computed at a
time and stay in the processor's caches. The C++ is in `winograd.h`.
"""

from guided_diffusion_core.networks.winograd import KERNEL, TILE, factors
from guided_diffusion_jt import runtime
from guided_diffusion_jt.kernels import source
from guided_diffusion_jt.runtime import jt, nn

_SIZE = TILE + KERNEL - 1
_OUTPUTS = 6  # output channels of a block
_TILES = 16  # tiles of a block
# From this size on it takes 0.3 to 0.7 of the time of oneDNN's direct convolution, measured on one core.
_CHANNELS = 64
_FEWEST_TILES = 16
_CHUNK = 64  # tiles at a time


def _constant(name, matrix):
    """Return the C++ definition of a matrix."""
    rows = []
    for row in matrix.tolist():
        numbers = ", ".join(f"{value!r}f" for value in row)
        rows.append("{" + numbers + "}")
    height, width = matrix.shape
    return f"static constexpr float {name}[{height}][{width}] = {{{', '.join(rows)}}};\n"


_HEADER = "".join(map(_constant, ("INPUTS", "KERNELS", "OUTPUTS"), factors())) + source("winograd.h")
_TRANSFORM_KERNELS = """
    const bool turned = data["turned"];
    const int64_t outputs = turned ? in0_shape1 : in0_shape0, channels = turned ? in0_shape0 : in0_shape1;
    transform_kernels(in0_p, outputs, channels, turned, out0_p);
"""
_CONVOLVE = """
    convolve(in0_p, in1_p, in2_p, in0_shape0, in0_shape1, out0_shape1, in0_shape2, in0_shape3, data["tiles"], out0_p);
"""
_WEIGHT_GRADIENT = """
    weight_gradient(in0_p, in1_p, in0_shape0, in0_shape1, in1_shape1, in0_shape2, in0_shape3, data["tiles"], out0_p,
                    out1_p);
"""


def pays(x, weight):
    """Return whether the convolution of x (N, C, H, W) with weight (O, C, 3, 3) is done here rather than directly."""
    return (
        not runtime.is_generic()
        and str(x.dtype) == str(weight.dtype) == "float32"
        and min(weight.shape[:2]) >= _CHANNELS
        and x.shape[2] % TILE == x.shape[3] % TILE == 0
        and x.shape[0] * x.shape[2] * x.shape[3] >= _FEWEST_TILES * TILE**2
    )


def _transformed(weight, turned=False):
    """Transform the kernels (O, C, 3, 3) to blocks of output channels: (36, O / 6 rounded up, C, 6).

    turned: transform the kernels of the gradient instead, with O and C exchanged.
    """
    out_channels, channels = weight.shape[1::-1] if turned else weight.shape[:2]
    shape = [_SIZE**2, -(-out_channels // _OUTPUTS), channels, _OUTPUTS]
    return jt.code(
        shape, weight.dtype, [weight], cpu_header=_HEADER, cpu_src=_TRANSFORM_KERNELS, data={"turned": int(turned)}
    )


def _convolve(x, kernels, bias):
    """Convolve x (N, C, H, W) with `_transformed` kernels and a bias (O,); returns (N, O, H, W)."""
    shape = [x.shape[0], bias.shape[0], *x.shape[2:]]
    return jt.code(shape, x.dtype, [x, kernels, bias], cpu_header=_HEADER, cpu_src=_CONVOLVE, data={"tiles": _CHUNK})


def _weight_gradient(x, gradient):
    """Return the gradient of the weight (O, C, 3, 3) from x (N, C, H, W) and the output's gradient (N, O, H, W)."""
    channels = x.shape[1]
    out_channels = gradient.shape[1]
    # Memory for the gradient of the transformed kernels, in whole blocks: a second result, which nobody reads.
    room = [_SIZE**2, -(-out_channels // _OUTPUTS) * _OUTPUTS, -(-channels // _TILES) * _TILES]
    return jt.code(
        [[out_channels, channels, KERNEL, KERNEL], room],
        [x.dtype] * 2,
        [x, gradient],
        cpu_header=_HEADER,
        cpu_src=_WEIGHT_GRADIENT,
        data={"tiles": _CHUNK},
    )[0]


class _Convolution(jt.Function):
    """A convolution whose gradients use Winograd's algorithm too."""

    def execute(self, x, weight, bias):
        self.saved = x, weight
        return _convolve(x, _transformed(weight), bias)

    def grad(self, grad):
        x, weight = self.saved
        # The gradient of x is the convolution of the output's gradient with the kernels turned by half a circle, and
        # with input and output channels exchanged.
        to_x = _convolve(grad, _transformed(weight, turned=True), jt.zeros((weight.shape[1],)))
        return to_x, _weight_gradient(x, grad), grad.sum((0, 2, 3))


def conv2d(x, weight, bias):
    """Convolve 3x3 with a border of zeros, by the faster algorithm.

    x: (N, C, H, W). weight: (O, C, 3, 3). bias: (O,). Returns (N, O, H, W).
    """
    if not pays(x, weight):
        return nn.conv2d(x, weight, bias, padding=1)
    return _Convolution.apply(x, weight, bias)

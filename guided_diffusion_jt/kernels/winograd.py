"""3x3 convolutions of stride one and their gradients by Winograd's algorithm, on a CPU in float32.

Tiles of a channel lie side by side, so that the transforms are sums of rows and the products of all channels
those of blocks of 6 output channels and 16 tiles, whose sums stay in registers. Some rows of tiles at a time,
which stay in the processor's caches.
"""

from guided_diffusion_core.networks.winograd import KERNEL, TILE, factors
from guided_diffusion_jt.kernels import source
from guided_diffusion_jt.runtime import jt, nn

_SIZE = TILE + KERNEL - 1
# of a block
_OUTPUTS = 6
_TILES = 16
# Measured on one core: from these on it takes 0.3 to 0.7 of the time of oneDNN's direct convolution.
_CHANNELS = 64
_FEWEST_TILES = 16
_CHUNK = 64  # tiles at a time


def _constant(name, matrix):
    rows = ", ".join("{" + ", ".join(f"{value!r}f" for value in row) + "}" for row in matrix.tolist())
    return f"static constexpr float {name}[{matrix.shape[0]}][{matrix.shape[1]}] = {{{rows}}};\n"


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
        not jt.flags.use_cuda
        and str(x.dtype) == str(weight.dtype) == "float32"
        and min(weight.shape[:2]) >= _CHANNELS
        and x.shape[2] % TILE == x.shape[3] % TILE == 0
        and x.shape[0] * x.shape[2] * x.shape[3] >= _FEWEST_TILES * TILE**2
    )


def _multiplied(weight, turned=False):
    """The kernels' values, in blocks of output channels: (36, O / 6, C, 6); turned: those of the gradient."""
    out_channels, channels = weight.shape[1::-1] if turned else weight.shape[:2]
    shape = [_SIZE**2, -(-out_channels // _OUTPUTS), channels, _OUTPUTS]
    return jt.code(
        shape, weight.dtype, [weight], cpu_header=_HEADER, cpu_src=_TRANSFORM_KERNELS, data={"turned": int(turned)}
    )


def _convolve(x, kernels, bias):
    """x (N, C, H, W), `_multiplied` kernels, bias (O,): (N, O, H, W)."""
    shape = [x.shape[0], bias.shape[0], *x.shape[2:]]
    return jt.code(shape, x.dtype, [x, kernels, bias], cpu_header=_HEADER, cpu_src=_CONVOLVE, data={"tiles": _CHUNK})


def _weight_gradient(x, gradient):
    """Gradient of the weight (O, C, 3, 3) from x (N, C, H, W) and the output's gradient (N, O, H, W)."""
    channels = x.shape[1]
    out_channels = gradient.shape[1]
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
    """The convolution and its gradients, each by Winograd's algorithm."""

    def execute(self, x, weight, bias):
        self.saved = x, weight
        return _convolve(x, _multiplied(weight), bias)

    def grad(self, grad):
        x, weight = self.saved
        to_x = _convolve(grad, _multiplied(weight, turned=True), jt.zeros((weight.shape[1],)))
        return to_x, _weight_gradient(x, grad), grad.sum((0, 2, 3))


def conv2d(x, weight, bias):
    """A 3x3 convolution with a border of zeros, by whichever way pays.

    x: (N, C, H, W). weight: (O, C, 3, 3). bias: (O,). Returns (N, O, H, W).
    """
    if not pays(x, weight):
        return nn.conv2d(x, weight, bias, padding=1)
    return _Convolution.apply(x, weight, bias)

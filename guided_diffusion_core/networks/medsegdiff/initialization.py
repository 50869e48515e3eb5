"""Draw the initial value of every parameter, which depends only on its name and the seed.

Both backends start from these arrays, so that the same seed gives the same network. The
distributions are the original's: PyTorch's default for convolutions, linear layers and
embeddings, He et al. 2015 (arXiv:1502.01852, eq. 15 with slope 0.01) in the highway network except its way
into the diffusion network, and zeros where guided diffusion starts a block as the identity.
"""

import math

import numpy as np

from guided_diffusion_core.networks.medsegdiff.state_shapes import BOTTLENECK_EMBED
from guided_diffusion_core.noise import INITIAL_WEIGHT

HIGHWAY_SLOPE = 0.01  # of the leaky ReLU that He's gain is computed for
FOURIER_DEVIATION = np.float32(0.02)  # of the weights of an FF-Parser
ZERO_LAYERS = ("out_layers.3", "proj_out")


def initial_value(name, shapes, tape):
    """Return the array that a parameter or buffer starts with: float32, int64 for batch counters.

    shapes: dict name -> shape of the whole network, from `state_shapes`.
    tape:   NoiseTape.
    """
    shape = shapes[name]
    layer, kind = name.rsplit(".", 1)
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_mean" or layer == "out.2" or layer.endswith(ZERO_LAYERS):
        return np.zeros(shape, np.float32)
    weight_shape = shapes.get(f"{layer}.weight", ())
    if kind == "running_var" or len(weight_shape) == 1:  # a normalisation: weight 1, bias 0
        return np.full(shape, kind != "bias", np.float32)
    if kind == "complex_weight":
        return tape.normal(f"{INITIAL_WEIGHT}/{name}", shape) * FOURIER_DEVIATION
    fan_in = math.prod(weight_shape[1:])
    if layer.startswith("hwm.") and layer != BOTTLENECK_EMBED:
        return _he_normal(name, shape, kind, fan_in, tape)
    bound = 1 / math.sqrt(fan_in)  # He's uniform with slope sqrt(5), and the bias's own rule, coincide
    return tape.symmetric_uniform(f"{INITIAL_WEIGHT}/{name}", shape, bound)


def _he_normal(name, shape, kind, fan_in, tape):
    if kind == "bias":
        return np.zeros(shape, np.float32)
    gain = math.sqrt(2 / (1 + HIGHWAY_SLOPE**2))
    return tape.normal(f"{INITIAL_WEIGHT}/{name}", shape) * np.float32(gain / math.sqrt(fan_in))

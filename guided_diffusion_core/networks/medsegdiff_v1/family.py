"""The family of version `1`: the highway is gated by the diffusion network, and its bottleneck is added to that."""

import math
import sys

import numpy as np

from guided_diffusion_core.errors import printable
from guided_diffusion_core.networks.medsegdiff.state_shapes import BOTTLENECK_EMBED
from guided_diffusion_core.networks.medsegdiff.versions import medsegdiff_family


def repair(expected, arrays, where):
    """Return the arrays with a bottleneck embedding of zeros if they have none, and say so on stderr.

    The original draws this layer again at random in every call, so that its files do not hold it.
    """
    random_layer = [f"{BOTTLENECK_EMBED}.{kind}" for kind in ("weight", "bias")]
    # In a network that these arrays belong to, the layer is a small part. Otherwise it may be of any size.
    count = sum(math.prod(expected[name]) for name in random_layer)
    if any(name in arrays for name in random_layer) or count > sum(value.size for value in arrays.values()):
        return arrays
    sys.stderr.write(
        f"{printable(where)}: has no {BOTTLENECK_EMBED}, a layer that the original draws at random in every "
        "call; it is set to zero.\n"
    )
    return {**arrays, **{name: np.zeros(expected[name], np.float32) for name in random_layer}}


FAMILY = medsegdiff_family("medsegdiff_v1", version="1", network="unet:UNetModel_v1preview", repair=repair)

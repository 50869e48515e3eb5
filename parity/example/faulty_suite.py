"""The same suite with a mistake in the Jittor port: its upsampling aligns the corners' centres, PyTorch's
does not. A run of it ends in divergence, first at the module `up`."""

import importlib

from parity.example import suite
from parity.example.suite import CASES, inputs, weights  # noqa: F401


def open_port(backend):
    """The `Port` of one backend, Jittor's with the mistake."""
    if backend == "jittor":
        return importlib.import_module("parity.example.jittor_unet").UNetPort(align_corners=True)
    return suite.open_port(backend)

"""The same suite with a mistake in the Jittor port: its upsampling aligns the centres of the corners, PyTorch's does
not. A run diverges, first at the module `up`."""

import importlib

from parity.example import suite
from parity.example.suite import CASES, inputs, weights

__all__ = ["CASES", "inputs", "open_port", "weights"]


def open_port(backend):
    """Return the `Port` of one backend; that of Jittor has the mistake."""
    if backend == "jittor":
        return importlib.import_module("parity.example.jittor_unet").UNetPort(align_corners=True)
    return suite.open_port(backend)

"""The parity suite with generic operators in Jittor: `python -m parity run CASES --suite support.generic_suite`."""

from contextlib import ExitStack

from support.backends import Backend
from support.generic import only_generic

from parity import medsegdiff
from parity.medsegdiff import CASES, inputs, weights

_until_the_process_ends = ExitStack()
__all__ = ["CASES", "inputs", "open_port", "weights"]


def open_port(backend):
    """Return the `Port` of one backend; that of Jittor computes with generic operators alone from now on."""
    port = medsegdiff.open_port(backend)
    if backend == "jittor":
        _until_the_process_ends.enter_context(only_generic(Backend(backend)))
    return port

"""Faults to plant in one backend at run time, with which `mutate` tests the harness itself.

A fault is a function(port) that returns a context manager. While that is open, everything that the worker builds and
runs has the fault. No source file changes. The order of the imports is the order of the table.
"""

from parity.faults import layers, process, training, sampling, checkpoints, controls  # noqa: F401, I001
from parity.faults.planting import CONTROLS, FAULTS


def planted(name, port):
    """Return the context in which the backend has the fault or control of that name."""
    return next(fault for fault in FAULTS + CONTROLS if fault.name == name).plant(port)

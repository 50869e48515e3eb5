"""The functions of a backend's `runtime` that recording a forward pass calls, for arrays of numpy."""

from contextlib import nullcontext

import numpy as np

_settings = {"started": False, "precision": "float32"}


def start(threads=None, precision="float32", **rest):
    """Set the precision; there is nothing else to set."""
    _settings["started"] = True
    set_precision(precision)


def started():
    return _settings["started"]


def set_precision(name):
    _settings["precision"] = name


def precision():
    return _settings["precision"]


def to_tensor(array, dtype=None):
    return np.array(array, dtype=dtype)


def to_numpy(tensor):
    return tensor.copy()


def synchronize():
    """Return at once: nothing is queued."""


def no_grad():
    return nullcontext()


def versions():
    return {"numpy": np.__version__}

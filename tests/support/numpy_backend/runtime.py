"""The functions of a backend's `runtime` that recording a forward pass calls, for arrays of numpy."""

from contextlib import nullcontext

import numpy as np

_settings = {"precision": "float32"}


def set_threads(n):
    """Leave numpy's products as they are."""


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

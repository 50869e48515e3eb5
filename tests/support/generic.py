"""Backends that compute with generic operators, as they do on a GPU, and with nothing else."""

from contextlib import ExitStack, contextmanager
from unittest import mock

import scipy.fft


def _refused(name):
    def refuse(*_, **__):
        raise AssertionError(f"{name} computes on a CPU alone")

    return refuse


def _cpu_only(backend):
    """Return (object, name) of each function that computes on a CPU alone. backend: a started `Backend`."""
    if backend.name == "jittor":
        jt = backend.module("runtime").jt
        return [(jt, "code"), (jt, "numpy_code"), (scipy.fft, "rfft2"), (scipy.fft, "irfft2")]
    winograd, group_norm = (backend.module(f"kernels.{name}") for name in ("winograd", "group_norm"))
    return [(winograd, "_convolve"), (group_norm, "_statistics")]


@contextmanager
def only_generic(backend):
    """Let a `Backend` compute with generic operators; whatever computes on a CPU alone raises AssertionError."""
    runtime = backend.module("runtime")
    with ExitStack() as stack:
        for place, name in _cpu_only(backend):
            stack.enter_context(mock.patch.object(place, name, _refused(name)))
        runtime.use_generic(True)
        stack.callback(runtime.use_generic, False)
        yield


@contextmanager
def operators(kind, backend):
    """Let a `Backend` compute with its "kernels", or with "generic" operators alone."""
    with only_generic(backend) if kind == "generic" else ExitStack():
        yield


KINDS = ("kernels", "generic")

"""Code that starts Jittor, compiles it, and computes fast on a CPU. Each backend needs its own kernels: this
folder has no twin. The C++ of an operator lies in a header with the name of the module that calls it."""

from importlib import resources


def source(name):
    """Return the text of a file of this folder, such as "winograd.h"."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")

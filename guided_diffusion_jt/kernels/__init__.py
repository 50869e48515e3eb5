"""What Jittor needs to start, to compile and to compute fast on a CPU. Each backend needs its own kernels: this
folder has no twin. The C++ of an operator lies in a header with the name of the module that calls it."""

from importlib import resources


def source(name):
    """Return the text of a file of this folder, such as "winograd.h"."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")

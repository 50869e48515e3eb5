"""Code that starts Jittor, compiles it, and computes faster or more exactly than Jittor's own operators. Each backend
needs its own kernels: this folder has no twin. The C++ of an operator lies in a header with the name of the module that
calls it. Next to each operator for the CPU is the same in generic operators, which Jittor has on CUDA too
(`runtime.is_generic`)."""

from importlib import resources


def source(name):
    """Return the text of a file of this folder, such as "winograd.h"."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")

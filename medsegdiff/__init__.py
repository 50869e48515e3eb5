"""MedSegDiff in PyTorch and Jittor: segmentation of medical images by diffusion.

>>> from medsegdiff import load
>>> model = load("run")
>>> result = model.segment(array)

docs/api.md describes the interface. Importing this package imports neither framework.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Model", "Segmentation", "UserError", "load", "train"]

if TYPE_CHECKING:
    from guided_diffusion_core.errors import UserError
    from medsegdiff.model import Model, Segmentation, load
    from medsegdiff.training import train

_MODULES = {
    "Model": "medsegdiff.model",
    "Segmentation": "medsegdiff.model",
    "UserError": "guided_diffusion_core.errors",
    "load": "medsegdiff.model",
    "train": "medsegdiff.training",
}


def __getattr__(name: str):
    """Import what the package offers on its first use: `medsegdiff --help` needs none of it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)

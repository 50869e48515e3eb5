"""The backends: which implementations there are, and how to import a module of one."""

import importlib
import sys

from guided_diffusion_core.errors import UserError

# Name -> package of the implementation, top-level module of the framework, its distribution.
BACKENDS = {
    "pytorch": ("guided_diffusion_pt", "torch", "torch"),
    "jittor": ("guided_diffusion_jt", "jittor", "jittor"),
}


def backend_module(backend, name):
    """The module `name` of a backend's package, such as backend_module("jittor", "unet").

    Raises `UserError` if the framework is not installed.
    """
    package, framework, distribution = BACKENDS[backend]
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name not in (framework, f"{framework}_utils"):
            raise
        raise UserError(
            f"--backend {backend}: {distribution} is not installed in {sys.prefix}. "
            "Run: make venv, or: pip install -r requirements.txt"
        ) from error

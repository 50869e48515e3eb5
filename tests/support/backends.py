"""The root of the repository, and the backends whose tests run."""

import os
from pathlib import Path

from guided_diffusion_core.backends import BACKENDS as KNOWN
from guided_diffusion_core.backends import backend_module

ROOT = Path(__file__).resolve().parents[2]

# MEDSEGDIFF_BACKENDS=pytorch runs only the tests of one backend, on a machine without the other.
BACKENDS = tuple(os.environ.get("MEDSEGDIFF_BACKENDS", ",".join(KNOWN)).split(","))


class Backend:
    """A backend by its name; `module("unet")` imports its module of that name."""

    def __init__(self, name):
        self.name = name

    def module(self, name):
        return backend_module(self.name, name)

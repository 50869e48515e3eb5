"""The repository's root, and the backends whose tests run."""

import os
from pathlib import Path

from guided_diffusion_core.backends import BACKENDS as KNOWN
from guided_diffusion_core.backends import backend_module

ROOT = Path(__file__).resolve().parents[2]

# MEDSEGDIFF_BACKENDS=pytorch runs the tests of one backend alone, on a machine without the other.
BACKENDS = tuple(os.environ.get("MEDSEGDIFF_BACKENDS", ",".join(KNOWN)).split(","))


class Backend:
    """One implementation: name, and `module("unet")` for its module of that name."""

    def __init__(self, name):
        self.name = name

    def module(self, name):
        return backend_module(self.name, name)

"""The root of the repository, and the backends whose tests run."""

import os
from pathlib import Path

from guided_diffusion_core.backends import BACKENDS as KNOWN
from guided_diffusion_core.backends import backend_module, start_backend

ROOT = Path(__file__).resolve().parents[2]

# MEDSEGDIFF_BACKENDS=pytorch runs only the tests of one backend, on a machine without the other.
BACKENDS = tuple(os.environ.get("MEDSEGDIFF_BACKENDS", ",".join(KNOWN)).split(","))

# MEDSEGDIFF_DEVICE=cuda:0 runs the tests of the golden values on a GPU (benchmarks/gpu.sh).
DEVICE = os.environ.get("MEDSEGDIFF_DEVICE", "cpu")


def start(name):
    """Start a backend on `DEVICE`, where networks are made too that no `build` makes."""
    start_backend(name, device=DEVICE)
    if name == "pytorch" and DEVICE != "cpu":
        import torch

        torch.set_default_device(DEVICE)


class Backend:
    """A backend by its name; `module("unet")` imports its module of that name."""

    def __init__(self, name):
        self.name = name

    def module(self, name):
        return backend_module(self.name, name)

"""The methods of this backend: what is optimised, and how masks come out of a network."""

import importlib

from guided_diffusion_core.methods import METHODS


def create_method(config):
    """Return the `Method` that a `Config` names."""
    return importlib.import_module(f"guided_diffusion_pt.{METHODS[config.training.method]}").create(config)

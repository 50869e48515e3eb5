"""The methods of this backend. A method gives the losses of a network, and the sampler of its masks."""

import importlib

from guided_diffusion_core.methods import METHODS


def create_method(config):
    """Return the `Method` that a `Config` names."""
    return importlib.import_module(f"guided_diffusion_pt.{METHODS[config.training.method]}").create(config)

"""The family of the paper's network: its initial values, and how its settings are read from weights."""

import dataclasses
from functools import partial

from guided_diffusion_core.networks.paper.infer import infer
from guided_diffusion_core.networks.paper.settings import PaperConfig, check
from guided_diffusion_core.networks.shared import shared_family

# The tower of the image starts as a copy of the tower of the mask.
COPIES = {"cond_downs.": "downs.", "cond_mid_block1.": "mid_block1."}


def original_of(name):
    """Return the parameter whose first values a parameter gets."""
    for prefix, source in COPIES.items():
        if name.startswith(prefix):
            return source + name.removeprefix(prefix)
    return name


def _checked(plan, settings):
    check(settings)
    return plan(settings)


_SHARED = shared_family("paper", PaperConfig, name_of_values=original_of)
FAMILY = dataclasses.replace(_SHARED, plan=partial(_checked, _SHARED.plan), infer=infer)

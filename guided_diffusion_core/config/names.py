"""The names of all settings, which are those of their flags."""

import dataclasses

from guided_diffusion_core.config.sections import SECTIONS, ModelConfig
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks import registry


def setting_names(*sections, model=None):
    """Return a dict: name of each setting of the given sections (all if none are given) -> its section.

    model: the network's settings, MedSegDiff's if None. The names are those of the flags, with the prefix of the
           family, such as "unet.width".
    """
    names = {}
    for section in sections or SECTIONS:
        if section == "model":
            flags = registry.family_of(model or ModelConfig()).flags()
        else:
            flags = [field.name for field in dataclasses.fields(SECTIONS[section])]
        names |= dict.fromkeys(flags, section)
    return names


def all_setting_names():
    """Return the set of the names of all settings, including "network" and the settings of every family."""
    names = {"network", *setting_names()}
    for family in registry.families().values():
        names |= set(family.flags())
    return names


def setting(config, name):
    """Return the value of a setting of a `Config` by name. Raises `UserError` if its network has no such setting."""
    if name in ("network", "preset", "seed", "normalisation", "processes"):
        return getattr(config, name)
    section = setting_names(model=config.model).get(name)
    if section is None:
        raise of_another_network(name, config.network)
    field = registry.family_of(config.model).flags()[name] if section == "model" else name
    return getattr(getattr(config, section), field)


def of_another_network(name, network):
    """Return the `UserError` about a setting that the chosen network does not have."""
    return found_expected(
        f"--{name}", f"given with the network {network}", "only settings of this network", "Leave the flag out."
    )

"""The configuration of a network from the names and shapes of its state dict."""

from dataclasses import fields

from guided_diffusion_core import config as configuration
from guided_diffusion_core.config import DiffusionConfig
from guided_diffusion_core.data.formats.transforms import RGB_RULE
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks import registry

ORIGINAL_RULES = {"ISIC": RGB_RULE, "BRATS": "none"}  # how the original scales intensities


def infer(shapes, given, where):
    """Return (`Config`, names of the settings that are taken from the original's defaults).

    shapes: dict name -> shape of a state dict, names without prefix.
    given:  settings on the command line, by name; also "network" and "normalisation". A family that cannot be told
            by its weights needs its name and the settings that are not the defaults.
    where:  the file, for errors.
    Raises `UserError` if this is no network that is known, or if a given setting contradicts it.
    """
    family, shown, guessed = _family(shapes, given, where)
    settings = {"network": family.name, **given, **shown, **guessed}
    channels = configuration.resolve(settings).model.image_channels
    data_name = given.get("data_name", "ISIC" if channels == 3 else "BRATS")
    rule = ORIGINAL_RULES.get(data_name, RGB_RULE if channels == 3 else "none")
    settings = {"normalisation": rule, **settings, "data_name": data_name}
    hidden = [name for name in family.flags() if name not in shown]
    hidden += [field.name for field in fields(DiffusionConfig)]
    assumed = [name for name in (*hidden, "data_name", "normalisation") if name not in given]
    return configuration.resolve(settings), assumed


def _family(shapes, given, where):
    """Return (`Family`, settings that the weights show, settings guessed from them)."""
    if "network" in given:
        candidates = [registry.family_named(given["network"])]
    else:
        candidates = [family for family in registry.families().values() if family.infer]
    for family in candidates:
        found = family.infer(shapes, given, where) if family.infer else ({}, {})
        if found:
            return family, *found
    raise found_expected(
        where,
        f"{len(shapes)} tensors, such as {', '.join(list(shapes)[:3])}",
        "a network of MedSegDiff, with input_blocks.0.0.weight",
        "Use such a checkpoint, or name the network with --network.",
    )

"""Functions of the original that turn settings into dicts, under its names."""

import dataclasses

from guided_diffusion_core.config.names import setting_names
from guided_diffusion_core.config.sections import SECTIONS
from guided_diffusion_core.errors import found_expected


def model_and_diffusion_defaults():
    """Return name -> default of every setting of MedSegDiff's network and of the diffusion."""
    return {
        field.name: field.default
        for section in ("model", "diffusion")
        for field in dataclasses.fields(SECTIONS[section])
    }


def split_settings(settings):
    """Return (settings of `ModelConfig`, settings of `DiffusionConfig`), two dicts by name.

    The original's `use_fp16` and `dpm_solver` are accepted while they are off. Raises `UserError` if one is on, and
    TypeError for an unknown name.
    """
    settings = dict(settings)
    for name, why, advice in (
        ("use_fp16", "the network is the same in all precisions", "Call set_mixed_precision of `runtime`."),
        ("dpm_solver", "the process is the same for all samplers", "Call dpm_solver_sample_loop_known of the process."),
    ):
        if settings.pop(name, False):
            raise found_expected(name, True, f"False: {why}", advice)
    where = setting_names("model", "diffusion")
    unknown = [name for name in settings if name not in where]
    if unknown:
        raise TypeError(f"unknown settings: {', '.join(unknown)}")
    model = {name: value for name, value in settings.items() if where[name] == "model"}
    diffusion = {name: value for name, value in settings.items() if where[name] == "diffusion"}
    return model, diffusion


def args_to_dict(args, keys):
    """Return the attributes `keys` of `args` as a dict."""
    return {key: getattr(args, key) for key in keys}

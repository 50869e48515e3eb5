"""Translate settings that older versions and the original wrote under other names."""

from guided_diffusion_core.errors import found_expected


def named_sampler(use_ddim, dpm_solver):
    """Return the value of `sampler` that the original's two booleans mean."""
    if dpm_solver:
        return "dpm-solver++"
    return "ddim" if use_ddim else "ancestral"


def current_sampling(settings):
    """Return the sampling section of a written configuration under today's names.

    settings: dict of JSON values. Older versions wrote `use_ddim` and `dpm_solver` instead of `sampler`.
    """
    kept = {name: value for name, value in settings.items() if name not in ("use_ddim", "dpm_solver")}
    if "sampler" in settings or len(kept) == len(settings):
        return settings
    # Older versions used DDIM unless the file said otherwise, and DPM-Solver++ only on request.
    return {"sampler": named_sampler(settings.get("use_ddim", True), settings.get("dpm_solver", False)), **kept}


def current_data(settings):
    """Return the data section of a written configuration; older versions used each volume as its file has it."""
    return {"orientation": "stored", **settings}


def current_model(settings, where):
    """Return a network's section of a written configuration without `class_cond`, which older versions wrote.

    where: the file, for the error message.
    Raises `UserError` for a class-conditional network, which no training has ever made.
    """
    if settings.get("class_cond"):
        raise found_expected(
            where, "a class-conditional network", "one without class labels", "Use another checkpoint."
        )
    return {name: value for name, value in settings.items() if name != "class_cond"}

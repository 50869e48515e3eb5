"""Settings as older versions and the original name them."""


def named_sampler(use_ddim, dpm_solver):
    """Return the value of `sampler` that the original's two booleans stand for."""
    if dpm_solver:
        return "dpm-solver++"
    return "ddim" if use_ddim else "ancestral"


def current_sampling(settings):
    """Return the sampling section of a written configuration by the names of today.

    settings: dict of JSON values. Older versions wrote `use_ddim` and `dpm_solver` instead of `sampler`.
    """
    kept = {name: value for name, value in settings.items() if name not in ("use_ddim", "dpm_solver")}
    if "sampler" in settings or len(kept) == len(settings):
        return settings
    # an older version took DDIM where only the other name was written
    return {"sampler": named_sampler(settings.get("use_ddim", True), settings.get("dpm_solver", False)), **kept}

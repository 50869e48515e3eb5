"""Checkpoints: their files, and the pointers to the last and the best one."""
from guided_diffusion_core.checkpoints.files import (
    FORMAT,
    NETWORK,
    TRAINER,
    VALIDATION,
    average_name,
    check_state,
    find,
    find_whole,
    fitted_state,
    forget_best,
    from_bytes,
    load,
    load_all,
    load_validation,
    point_to_best,
    read_config,
    save,
    to_bytes,
)

__all__ = [
    "FORMAT", "NETWORK", "TRAINER", "VALIDATION", "average_name", "check_state", "find", "find_whole", "fitted_state",
    "forget_best", "from_bytes", "load", "load_all", "load_validation", "point_to_best", "read_config", "save",
    "to_bytes",
]

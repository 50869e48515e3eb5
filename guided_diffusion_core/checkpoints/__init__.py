"""Write and read checkpoints, and the pointers to the last and the best one."""

from guided_diffusion_core.checkpoints.files import (
    FORMAT,
    NETWORK,
    TRAINER,
    VALIDATION,
    average_name,
    check_state,
    find,
    find_whole,
    forget_best,
    load,
    load_all,
    load_validation,
    point_to_best,
    read_config,
    resume_folder,
    save,
    to_bytes,
)
from guided_diffusion_core.checkpoints.pointers import folders_until, last_folder

__all__ = [
    "FORMAT",
    "NETWORK",
    "TRAINER",
    "VALIDATION",
    "average_name",
    "check_state",
    "find",
    "find_whole",
    "folders_until",
    "forget_best",
    "last_folder",
    "load",
    "load_all",
    "load_validation",
    "point_to_best",
    "read_config",
    "resume_folder",
    "save",
    "to_bytes",
]

"""Training without a framework: setup, resuming, its folder, rates, the run, its log and its validation."""

from guided_diffusion_core.training.curves import require_tensorboard
from guided_diffusion_core.training.folder import RunFolder, default_folder, read_config_file
from guided_diffusion_core.training.initial import initial_weights
from guided_diffusion_core.training.log import seconds_so_far
from guided_diffusion_core.training.needs import say_needs
from guided_diffusion_core.training.rates import ema_rate_at, last_step, learning_rate
from guided_diffusion_core.training.resume import resumed_config
from guided_diffusion_core.training.run import run_training
from guided_diffusion_core.training.sets import split_sets, write_split
from guided_diffusion_core.training.setup import fit_to_data

__all__ = [
    "RunFolder",
    "default_folder",
    "ema_rate_at",
    "fit_to_data",
    "initial_weights",
    "last_step",
    "learning_rate",
    "read_config_file",
    "require_tensorboard",
    "resumed_config",
    "run_training",
    "say_needs",
    "seconds_so_far",
    "split_sets",
    "write_split",
]

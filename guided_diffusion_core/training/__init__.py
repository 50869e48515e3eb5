"""Training without a framework: setup, resuming, rates, the run, its log and its validation."""

from guided_diffusion_core.training.rates import ema_rate_at, last_step, learning_rate
from guided_diffusion_core.training.resume import resumed_config
from guided_diffusion_core.training.run import run_training
from guided_diffusion_core.training.setup import fit_to_data, prepare_run

__all__ = ["ema_rate_at", "fit_to_data", "last_step", "learning_rate", "prepare_run", "resumed_config", "run_training"]

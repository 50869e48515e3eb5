"""All settings of the software: their names, defaults, ranges and help texts.

The dataclasses in `sections.py` define each setting once. The command lines are built from them
(`command_line/parser.py`), a checkpoint carries their values as JSON, and a preset is a named set of values.
"""

from guided_diffusion_core.config.checks import ema_rates
from guided_diffusion_core.config.configuration import Config, from_checkpoint, from_dict, process_steps, resolve
from guided_diffusion_core.config.names import all_setting_names, setting, setting_names
from guided_diffusion_core.config.older import current_data, current_sampling, named_sampler
from guided_diffusion_core.config.original import args_to_dict, model_and_diffusion_defaults, split_settings
from guided_diffusion_core.config.paths import last_name, path_settings, without_paths
from guided_diffusion_core.config.presets import PRESET_NOTES, PRESETS
from guided_diffusion_core.config.sections import (
    FUSIONS,
    SAMPLERS,
    SECTIONS,
    ComputeConfig,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    SamplingConfig,
    TrainingConfig,
)

__all__ = [
    "FUSIONS",
    "PRESETS",
    "PRESET_NOTES",
    "SAMPLERS",
    "SECTIONS",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "ModelConfig",
    "SamplingConfig",
    "TrainingConfig",
    "all_setting_names",
    "args_to_dict",
    "current_data",
    "current_sampling",
    "ema_rates",
    "from_checkpoint",
    "from_dict",
    "last_name",
    "model_and_diffusion_defaults",
    "named_sampler",
    "path_settings",
    "process_steps",
    "resolve",
    "setting",
    "setting_names",
    "split_settings",
    "without_paths",
]

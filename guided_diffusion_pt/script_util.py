"""Networks and diffusion processes from settings, by the original's names."""

from guided_diffusion_core.config import (
    Config,
    DiffusionConfig,
    ModelConfig,
    args_to_dict,
    model_and_diffusion_defaults,
    split_settings,
)
from guided_diffusion_core.networks import registry
from guided_diffusion_pt import build


def create_model_and_diffusion(*, seed=0, **settings):
    """Build (network, diffusion) from settings by their names in `model_and_diffusion_defaults()`.

    seed:     seed of the initial weights.
    settings: values; the others keep their defaults.
    Raises TypeError for an unknown name and `UserError` for a wrong value.
    """
    network, process = split_settings(settings)
    config = Config(seed=seed, model=ModelConfig(**network), diffusion=DiffusionConfig(**process))
    return build.build(config)


def create_model(*, seed=0, **settings):
    """Build the network of the settings (fields of `ModelConfig`), with the initial weights of a seed."""
    config = ModelConfig(**settings)
    return build.build_network(config, registry.initial_state(config, seed))


def create_gaussian_diffusion(*, steps=DiffusionConfig.diffusion_steps, learn_sigma=False, mask_channels=1, **settings):
    """Build the diffusion process of the settings (fields of `DiffusionConfig`), a `SpacedDiffusion`.

    steps:                      T of the whole process.
    learn_sigma, mask_channels: settings of the network.
    """
    config = DiffusionConfig(diffusion_steps=steps, **settings)
    return build.build_process(config, learn_sigma, mask_channels)


def load_model_and_diffusion(path):
    """Load (network in eval mode, diffusion, Config) from a checkpoint file.

    Raises `UserError` if the file is no checkpoint or its weights do not fit its configuration.
    """
    model, config = build.load_network(path)
    return model, build.build_process(config.diffusion, config.model.learn_sigma, config.model.mask_channels), config

"""Networks and diffusion processes from settings, by the original's names."""

from guided_diffusion_core.config import (  # noqa: F401
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
    """Return (network, diffusion) from the names of `model_and_diffusion_defaults()`; what is left out takes its
    default. Raises TypeError for an unknown name and `UserError` for a wrong value.

    seed: of the initial weights.
    """
    network, process = split_settings(settings)
    config = Config(seed=seed, model=ModelConfig(**network), diffusion=DiffusionConfig(**process))
    return build.build(config)


def create_model(*, seed=0, **settings):
    """Return the network of the settings (fields of `ModelConfig`), with the initial weights of a seed."""
    config = ModelConfig(**settings)
    return build.build_network(config, registry.initial_state(config, seed))


def create_gaussian_diffusion(*, steps=DiffusionConfig.diffusion_steps, learn_sigma=False, mask_channels=1, **settings):
    """Return the diffusion process of the settings (fields of `DiffusionConfig`), a `SpacedDiffusion`.

    learn_sigma, mask_channels: of the network.
    """
    config = DiffusionConfig(diffusion_steps=steps, **settings)
    return build.build_process(config, learn_sigma, mask_channels)


def load_model_and_diffusion(path):
    """(network in eval mode, diffusion, Config) of a checkpoint file.

    Raises `UserError` if the file is no checkpoint or its weights do not fit its configuration.
    """
    model, config = build.load_network(path)
    return model, build.build_process(config.diffusion, config.model.learn_sigma, config.model.mask_channels), config

"""Build the network and the process that a configuration says."""

import importlib

from guided_diffusion_core import checkpoints
from guided_diffusion_core.diffusion.schedule import LossType, ModelMeanType, ModelVarType, get_named_beta_schedule
from guided_diffusion_core.networks import registry
from guided_diffusion_pt import networks, runtime
from guided_diffusion_pt.respace import SpacedDiffusion, space_timesteps


def build_network(settings, state=None, where="weights"):
    """Return the network of a family's settings.

    settings: a `NetworkConfig`.
    state:    name -> numpy array of every parameter and buffer. None leaves them without meaning, to be loaded
              later (`runtime.load_state`): nothing is drawn.
    where:    the file that the state comes from, for errors.
    Raises `UserError` for settings that make no network, and for a state of another one.
    """
    module, name = registry.family_of(settings).source()
    networks.find_folders()
    network = getattr(importlib.import_module(f"guided_diffusion_pt.{module}"), name)(registry.make_plan(settings))
    if state is not None:
        runtime.load_state(network, registry.repaired(settings, state, where), where)
    return network


def build_process(diffusion, learn_sigma=False, mask_channels=1):
    """Return the process of a `DiffusionConfig`, a `SpacedDiffusion`.

    learn_sigma, mask_channels: of the network.
    """
    steps = diffusion.diffusion_steps
    if diffusion.use_kl:
        loss_type = LossType.RESCALED_KL
    else:
        loss_type = LossType.RESCALED_MSE if diffusion.rescale_learned_sigmas else LossType.MSE
    return SpacedDiffusion(
        use_timesteps=space_timesteps(steps, diffusion.timestep_respacing or [steps]),
        betas=get_named_beta_schedule(diffusion.noise_schedule, steps),
        model_mean_type=ModelMeanType.START_X if diffusion.predict_xstart else ModelMeanType.EPSILON,
        model_var_type=ModelVarType.LEARNED_RANGE if learn_sigma else ModelVarType.FIXED_LARGE,
        loss_type=loss_type,
        rescale_timesteps=diffusion.rescale_timesteps,
        mask_channels=mask_channels,
    )


def load_network(path):
    """Return (network in eval mode, Config) of a checkpoint file.

    Raises `UserError` if the file is no checkpoint or its weights do not fit its configuration.
    """
    config, arrays = checkpoints.load(path)
    network = build_network(config.model, arrays, where=path)
    network.eval()
    return network, config


def build(config, state=None, where="weights"):
    """Return (network, process) of a `Config`.

    state: of the network, as in `build_network`; None takes the initial one of the configuration's seed.
    """
    if state is None:
        state = registry.initial_state(config.model, config.seed)
    process = build_process(config.diffusion, config.model.learn_sigma, config.model.mask_channels)
    return build_network(config.model, state, where), process

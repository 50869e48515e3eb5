"""The network and the process of a configuration."""

import importlib

import torch as th

from guided_diffusion_core import checkpoints
from guided_diffusion_core.diffusion.schedule import LossType, ModelMeanType, ModelVarType, get_named_beta_schedule
from guided_diffusion_core.networks import registry
from guided_diffusion_pt import networks, runtime
from guided_diffusion_pt.nn import kernel_format
from guided_diffusion_pt.respace import SpacedDiffusion, space_timesteps


def build_network(settings, state=None, where="weights"):
    """Build the network of a family's settings, on the current device.

    settings: a `NetworkConfig`.
    state:    name -> numpy array of every parameter and buffer. None draws nothing and leaves arbitrary values, for a
              later `runtime.load_state`.
    where:    name of the file of the state, for errors.
    Raises `UserError` for impossible settings, and for the state of another network.
    """
    if state is not None:
        # before the network is built: a file may claim one of any size
        state = registry.repaired(settings, state, where)
        checkpoints.check_state(registry.state_shapes(settings), state, where)
    module, name = registry.family_of(settings).source()
    networks.find_folders()
    create = getattr(importlib.import_module(f"guided_diffusion_pt.{module}"), name)
    with th.device(runtime.device()):
        network = kernel_format(create(registry.make_plan(settings)))
    if state is not None:
        runtime.load_state(network, state, where)
    if runtime.current.compile:
        network.compile(dynamic=False)  # when it is first called, and for each shape and type of its input
    return network


def build_process(diffusion, learn_sigma=False, mask_channels=1):
    """Build the process of a `DiffusionConfig`, a `SpacedDiffusion`.

    learn_sigma, mask_channels: settings of the network.
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
    """Load (network in eval mode, Config) from a checkpoint file.

    Raises `UserError` if the file is no checkpoint or its weights do not fit its configuration.
    """
    config, arrays = checkpoints.load(path)
    network = build_network(config.model, arrays, where=path)
    network.eval()
    return network, config


def build(config, state=None, where="weights"):
    """Build (network, process) of a `Config`.

    state: that of the network, as in `build_network`; None draws the initial one from the configuration's seed.
    where: name of the file of the state, for errors.
    """
    if state is None:
        state = registry.initial_state(config.model, config.seed)
    process = build_process(config.diffusion, config.model.learn_sigma, config.model.mask_channels)
    return build_network(config.model, state, where), process

"""Networks and diffusion processes from settings, by the original's names."""

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import (  # noqa: F401
    DiffusionConfig,
    ModelConfig,
    args_to_dict,
    model_and_diffusion_defaults,
    model_and_diffusion_settings,
    split_settings,
)
from guided_diffusion_core.diffusion.schedule import LossType, ModelMeanType, ModelVarType, get_named_beta_schedule
from guided_diffusion_core.networks.medsegdiff.initialization import initial_state
from guided_diffusion_core.networks.medsegdiff.plan import make_plan
from guided_diffusion_core.networks.medsegdiff.state_shapes import state_shapes
from guided_diffusion_pt import runtime
from guided_diffusion_pt.respace import SpacedDiffusion, space_timesteps
from guided_diffusion_pt.unet import make_network


def create_model_and_diffusion(*, seed=0, **settings):
    """(network, diffusion) from the names of `model_and_diffusion_defaults()`; what is left out
    takes its default. Raises TypeError for an unknown name and `UserError` for a wrong value.

    seed: of the initial weights.
    """
    network, process = split_settings(settings)
    process["steps"] = process.pop("diffusion_steps", DiffusionConfig.diffusion_steps)
    process |= {name: network.get(name, getattr(ModelConfig, name)) for name in ("learn_sigma", "mask_channels")}
    return create_model(seed=seed, **network), create_gaussian_diffusion(**process)


def create_model(*, seed=0, **settings):
    """The network of the settings (fields of `ModelConfig`), with the initial weights of a seed."""
    plan = make_plan(ModelConfig(**settings))
    model = make_network(plan)
    runtime.load_state(model, initial_state(state_shapes(plan), seed))
    return model


def create_gaussian_diffusion(
    *,
    steps=1000,
    learn_sigma=False,
    sigma_small=False,
    noise_schedule="linear",
    use_kl=False,
    predict_xstart=False,
    rescale_timesteps=False,
    rescale_learned_sigmas=False,
    timestep_respacing="",
    mask_channels=1,
):
    """The diffusion process of the settings (fields of `DiffusionConfig`), a `SpacedDiffusion`.

    sigma_small: where the variance is not learned, take the posterior's instead of beta.
    mask_channels: of the network.
    """
    if use_kl:
        loss_type = LossType.RESCALED_KL
    else:
        loss_type = LossType.RESCALED_MSE if rescale_learned_sigmas else LossType.MSE
    fixed = ModelVarType.FIXED_SMALL if sigma_small else ModelVarType.FIXED_LARGE
    return SpacedDiffusion(
        use_timesteps=space_timesteps(steps, timestep_respacing or [steps]),
        betas=get_named_beta_schedule(noise_schedule, steps),
        model_mean_type=ModelMeanType.START_X if predict_xstart else ModelMeanType.EPSILON,
        model_var_type=ModelVarType.LEARNED_RANGE if learn_sigma else fixed,
        loss_type=loss_type,
        rescale_timesteps=rescale_timesteps,
        mask_channels=mask_channels,
    )


def load_model_and_diffusion(path):
    """(network in eval mode, diffusion, Config) of a checkpoint file.

    Raises `UserError` if the file is no checkpoint or its weights do not fit its configuration.
    """
    config, arrays = checkpoints.load(path)
    model, diffusion = create_model_and_diffusion(**model_and_diffusion_settings(config))
    runtime.load_state(model, arrays, where=path)
    model.eval()
    return model, diffusion, config

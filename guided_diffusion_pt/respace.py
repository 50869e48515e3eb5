"""Diffusion processes that visit only some steps of another one."""

from guided_diffusion_core.diffusion.schedule import respace, sampling_timesteps, space_timesteps  # noqa: F401
from guided_diffusion_pt.gaussian_diffusion import GaussianDiffusion


class SpacedDiffusion(GaussianDiffusion):
    """The steps `use_timesteps` of a process, with the same alpha_bar at each (Improved DDPM,
    arXiv:2102.09672, section 4).

    use_timesteps: indices of the whole process' steps to keep.
    betas:         (T,) of the whole process; further arguments as of `GaussianDiffusion`.

    Time step indices that go in and out count the kept steps; the network and `step_noise` get
    those of the whole process (`timestep_map`), in training as in sampling.
    """

    def __init__(self, use_timesteps, *, betas, **kwargs):
        kept_betas, timestep_map = respace(betas, use_timesteps)
        super().__init__(betas=kept_betas, **kwargs)
        self.timestep_map = timestep_map
        self.whole_betas = betas
        self.original_num_steps = len(betas)


def with_sampling_steps(diffusion, steps):
    """The process that a sampler of `steps` network evaluations follows: a `SpacedDiffusion`.

    diffusion: the trained process, spaced or not; its schedule stays, only steps of it are skipped.
    steps:     0 for all, else 1 to its number of steps (`sampling_timesteps`).
    Raises `UserError` for a number that it cannot give.
    """
    kept = sampling_timesteps(diffusion.num_timesteps, steps)
    return SpacedDiffusion(
        [diffusion.timestep_map[t] for t in kept],
        betas=diffusion.whole_betas,
        model_mean_type=diffusion.model_mean_type,
        model_var_type=diffusion.model_var_type,
        loss_type=diffusion.loss_type,
        rescale_timesteps=diffusion.rescale_timesteps,
        mask_channels=diffusion.mask_channels,
    )

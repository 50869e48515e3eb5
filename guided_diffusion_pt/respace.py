"""Diffusion processes that visit only some steps of another one."""

from guided_diffusion_core.diffusion.schedule import respace, space_timesteps  # noqa: F401
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
        self.original_num_steps = len(betas)

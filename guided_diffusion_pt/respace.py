"""Diffusion processes that take only some steps of another one."""

from guided_diffusion_core.diffusion.schedule import respace, space_timesteps
from guided_diffusion_pt.gaussian_diffusion import GaussianDiffusion


class SpacedDiffusion(GaussianDiffusion):
    """A process of some steps of a whole process, with the same alpha_bar at each of them (Nichol & Dhariwal 2021,
    arXiv:2102.09672, section 4).

    use_timesteps: indices of the steps that are kept.
    betas:         (T,) numpy, those of the whole process.
    kwargs:        the other arguments of `GaussianDiffusion`.

    Callers count the kept steps. The network and `step_noise` get the indices in the whole process (`timestep_map`),
    in training and in sampling.
    """

    def __init__(self, use_timesteps, *, betas, **kwargs):
        kept_betas, timestep_map = respace(betas, use_timesteps)
        super().__init__(betas=kept_betas, **kwargs)
        self.timestep_map = timestep_map
        self.original_num_steps = len(betas)

"""The Gaussian process of DDPM (arXiv:2006.11239), whose times are the indices of its steps."""

import numpy as np

from guided_diffusion_core.diffusion.schedule import (
    DiffusionTables,
    ModelMeanType,
    ModelVarType,
    choose_timesteps,
    sampling_timesteps,
)


class GaussianProcess(DiffusionTables):
    """A `Process` in T steps, numbered from 0 (least noise) to T - 1.

    betas:             (T,) numpy, variance that each step adds, between 0 and 1.
    model_mean_type:   ModelMeanType, what the network predicts.
    model_var_type:    ModelVarType, the variance of a reverse step.
    rescale_timesteps: scale the network's time input to 0 to 1000.

    A respaced process visits only some steps of a whole one: `timestep_map` holds their indices in the whole process,
    and `original_num_steps` is the number of steps of the whole process.
    """

    def __init__(self, betas, model_mean_type, model_var_type, rescale_timesteps=False):
        super().__init__(betas)
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.learns_sigma = model_var_type == ModelVarType.LEARNED_RANGE
        self.rescale_timesteps = rescale_timesteps
        self.timestep_map = tuple(range(self.num_timesteps))
        self.original_num_steps = self.num_timesteps

    def times(self, steps):
        """Return `steps` indices, evenly spaced and descending (`sampling_timesteps`)."""
        return np.array(sampling_timesteps(self.num_timesteps, steps))

    def draw(self, uniforms, weights=None):
        """Draw time steps and return (indices, importance), see `choose_timesteps`.

        weights: (T,), relative frequency of each step; None for all steps equally often.
        """
        if weights is None:
            weights = np.ones(self.num_timesteps)
        return choose_timesteps(weights, uniforms)

    def mix(self, t):
        """Return the square roots of alpha_bar and of 1 - alpha_bar (DDPM, eq. 4)."""
        return self.sqrt_alphas_cumprod[t], self.sqrt_one_minus_alphas_cumprod[t]

    def target(self, t):
        """Return (1, 0) for a network that predicts x_0 and (0, 1) for one that predicts the noise."""
        predicts_xstart = np.full(np.shape(t), float(self.model_mean_type == ModelMeanType.START_X))
        return predicts_xstart, 1.0 - predicts_xstart

    def network_time(self, t):
        """Return the indices in the whole process, scaled to 0 to 1000 if `rescale_timesteps` is set."""
        times = np.array(self.timestep_map)[t]
        return times * (1000.0 / self.original_num_steps) if self.rescale_timesteps else times

    def noise_step(self, t):
        """Return the indices in the whole process."""
        return np.array(self.timestep_map)[t]

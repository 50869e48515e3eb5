"""Faults in the diffusion process and its objective."""

from unittest import mock

import numpy as np

from guided_diffusion_core.diffusion.schedule import ModelVarType
from parity.faults.planting import fault, replaced


@fault("schedule computed in float32", "table diffusion.betas")
def schedule_in_float32(port):
    return replaced(
        port.module("build"),
        "get_named_beta_schedule",
        lambda original, name, steps: original(name, steps).astype(np.float32).astype(np.float64),
    )


@fault("time steps counted from one", "table diffusion.timestep_map")
def shifted_timestep_map(port):
    def shifted(original, self, *args, **keywords):
        original(self, *args, **keywords)
        self.timestep_map = tuple(t + 1 for t in self.timestep_map)

    return replaced(port.module("respace").SpacedDiffusion, "__init__", shifted)


@fault("fixed variance where it is learned", "state diffusion._variance#0.0")
def variance_branch(port):
    def fixed(original, self, out, x_t, t):
        with mock.patch.object(self, "model_var_type", ModelVarType.FIXED_SMALL):
            return original(self, out, x_t, t)

    return replaced(port.module("gaussian_diffusion").GaussianDiffusion, "_variance", fixed)


@fault("coefficients of the posterior's mean swapped", "state diffusion.q_posterior_mean_variance#0.0")
def posterior_coefficients(port):
    return replaced(
        port.module("gaussian_diffusion").GaussianDiffusion,
        "q_posterior_mean_variance",
        lambda original, self, x_start, x_t, t: original(self, x_t, x_start, t),
    )


@fault("noise of the noised mask 0.1% too large", "state diffusion.q_sample#0")
def noising_scale(port):
    return replaced(
        port.module("gaussian_diffusion").GaussianDiffusion,
        "q_sample",
        lambda original, self, x_start, t, noise: original(self, x_start, t, noise * port.runtime.scalar(1.001)),
    )


@fault("weight 1 instead of 10 on the calibration mask", "loss total, step 0")
def calibration_weight(port):
    return mock.patch.object(port.module("gaussian_diffusion"), "CALIBRATION_WEIGHT", 1.0)

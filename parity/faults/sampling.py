"""Faults of the samplers and of what follows them."""

from unittest import mock

import numpy as np

from guided_diffusion_core import sampling
from guided_diffusion_core.noise import NoiseTape
from parity.faults.planting import fault, replaced


@fault("x_0 not clipped", "state diffusion.q_posterior_mean_variance#0 given 0")
def clip_left_out(port):
    return replaced(
        port.module("gaussian_diffusion").GaussianDiffusion,
        "_reverse_step",
        lambda original, self, out, x_t, t, clip_denoised: original(self, out, x_t, t, False),
    )


@fault("DDIM's coefficients of the next time step", "state diffusion.ddim_sample#?.sample")
def ddim_coefficients(port):
    return replaced(
        port.module("gaussian_diffusion"),
        "ddim_coefficients",
        lambda original, tables, eta: tuple(np.roll(values, 1) for values in original(tables, eta)),
    )


@fault("DPM-Solver's extrapolation twice as far", "state diffusion.dpm_solver_sample#1.sample")
def dpm_solver_extrapolation(port):
    def far(original, tables):
        xstart_coef, before_coef, x_t_coef = original(tables)
        return xstart_coef - before_coef, 2 * before_coef, x_t_coef

    return replaced(port.module("dpm_solver"), "dpm_solver_coefficients", far)


@fault("noise added in the last step too", "state diffusion.p_sample#5.sample")
def noise_in_last_step(port):
    def noisy(original, self, *args, **keywords):
        with mock.patch.object(self, "adds_noise", np.ones(self.num_timesteps)):
            return original(self, *args, **keywords)

    return replaced(port.module("gaussian_diffusion").GaussianDiffusion, "p_sample", noisy)


@fault("one noise for all members of an ensemble", "noise tape: *")
def members_share_noise(port):
    return replaced(
        NoiseTape,
        "normal_batch",
        lambda original, self, site, shape, *, step, cases, members=None: original(
            self, site, shape, step=step, cases=cases
        ),
    )


@fault("minimum instead of mean of the ensemble", "probability *")
def minimum_fusion(port):
    return replaced(
        sampling,
        "fuse",
        lambda original, members, rule: (np.clip(members.min(axis=0), 0, 1), original(members, rule)[1]),
    )

"""Faults in the samplers and the steps after them."""

import dataclasses
from unittest import mock

import numpy as np

from guided_diffusion_core.diffusion.solvers import SOLVERS
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.sampling import run
from parity.faults.planting import fault, replaced


@fault("x_0 not clipped", "state solver.step#0.*")
def clip_left_out(port):
    return replaced(port.module("solver").Solver, "_limited", lambda original, self, x_0: x_0)


def changed_steps(name, change):
    """Pass the rows of a sampler through change(Steps), which returns the fields that it replaces."""
    solver = SOLVERS[name]

    def changed(*arguments):
        steps = solver(*arguments)
        return dataclasses.replace(steps, **change(steps))

    return mock.patch.dict(SOLVERS, {name: changed})


@fault("DDIM's coefficients of the next time step", "state solver.step#?.sample")
def ddim_coefficients(port):
    return changed_steps(
        "ddim", lambda steps: {name: np.roll(getattr(steps, name), -1) for name in ("xstart", "x_t", "noise")}
    )


@fault("DPM-Solver's extrapolation twice as far", "state solver.step#1.sample")
def dpm_solver_extrapolation(port):
    return changed_steps(
        "dpm-solver++", lambda steps: {"xstart": steps.xstart - steps.before, "before": 2 * steps.before}
    )


@fault("noise added in the last step too", "state solver.step#5.sample")
def noise_in_last_step(port):
    return changed_steps("ancestral", lambda steps: {"noise": np.ones(len(steps.noise))})


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
        run,
        "fuse",
        lambda original, members, rule: (np.clip(members.min(axis=0), 0, 1), original(members, rule)[1]),
    )

"""Add a process of another kind, flow matching, as one class in numpy: both backends train and sample it unchanged.

With the best prediction for pixels of N(0.3, 0.25) its differential equation has a known solution: every start
value n of N(0, 1) ends at 0.3 + 0.5 n.
"""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from support.toy import array, tensor

from guided_diffusion_core.config import SamplingConfig
from guided_diffusion_core.diffusion.process import end_points
from guided_diffusion_core.diffusion.schedule import ModelVarType
from guided_diffusion_core.diffusion.solvers import SOLVERS, Steps
from guided_diffusion_core.noise import SAMPLE_INITIAL, TRAIN_NOISE, TRAIN_TIMESTEP, NoiseTape
from guided_diffusion_core.training.draws import BatchDraws

pytestmark = pytest.mark.usefixtures("float64")
CENTRE = 0.3
SPREAD = 0.5
SHAPE = (1, 8, 8)


class Flow:
    """The straight path x_t = (1 - t) x_0 + t noise, whose velocity noise - x_0 the network predicts."""

    model_var_type = ModelVarType.FIXED_SMALL

    def times(self, steps):
        return np.linspace(1.0, 0.0, steps, endpoint=False)

    def draw(self, uniforms):
        return uniforms, np.ones(len(uniforms))

    def mix(self, t):
        return 1.0 - t, t

    def target(self, t):
        return np.full(len(t), -1.0), np.ones(len(t))

    def network_time(self, t):
        return 1000.0 * t

    def noise_step(self, t):
        return np.round(1e6 * t).astype(int)


def euler(process, times, settings):
    """Return the `Steps` of Euler's method, x_s = x_t + (s - t) v with v = (x_t - x_0) / t."""
    _, t, _, s = end_points(process, times)
    return Steps(times, xstart=1.0 - s / t, before=0 * t, x_t=s / t, noise=0 * t)


def heun(process, times, settings):
    """Return the `Steps` of Heun's method: each step but the last is repeated with the mean of both velocities.

    The state before, x, is recovered from the first row: x' = (1 - s / t) x_0' + s / t x.
    """
    rows = []
    for t, s in zip(times[:-1], times[1:]):
        h = s - t
        recovered = t / s * (1 + h / (2 * t))
        rows.append((t, 1 - s / t, 0, s / t))
        rows.append((s, -h / (2 * s), -recovered * (1 - s / t) - h / (2 * t), recovered + h / (2 * s)))
    rows.append((times[-1], 1, 0, 0))
    where, xstart, before, x_t = np.array(rows).T
    return Steps(where, xstart, before, x_t, 0 * where)


def flow_of(backend):
    """Return the process with the tensor methods of a backend."""
    return type("FlowTensors", (backend.module("process").ProcessTensors, Flow), {})()


class BestNetwork:
    """The mean velocity E[noise - x_0 | x_t] of pixels of N(CENTRE, SPREAD^2)."""

    def __init__(self, backend):
        self.backend = backend

    def condition(self, image):
        return None

    def __call__(self, x, t):
        time = array(self.backend, t).reshape(-1, 1, 1, 1) / 1000.0
        variance = (1 - time) ** 2 * SPREAD**2 + time**2
        residual = array(self.backend, x)[:, -1:] - (1 - time) * CENTRE
        noise = time / variance * residual
        x_0 = CENTRE + (1 - time) * SPREAD**2 / variance * residual
        return tensor(self.backend, noise - x_0)


def largest_error(backend, sampler, steps):
    """Sample two cases and three members with the public sampler, and return the largest error of their masks."""
    tape = NoiseTape(5)
    settings = SamplingConfig(sampler=sampler, sample_steps=steps, num_ensemble=3, clip_denoised=False, eta=0.0)
    sample = backend.module("sample_util").EnsembleSampler(BestNetwork(backend), flow_of(backend), settings, tape)
    found = sample(np.zeros((2, 3, 8, 8), np.float32), ["a", "b"])
    starts = [
        [tape.normal(SAMPLE_INITIAL, SHAPE, case=case, member=member) for case in ("a", "b")] for member in range(3)
    ]
    assert found.shape == (3, 2, *SHAPE)
    return np.abs(found - (CENTRE + SPREAD * np.array(starts))).max()


@pytest.mark.parametrize("sampler, order", [("euler", 1), ("heun", 2), ("ddim", 1)])
def test_flow_matching_comes_to_the_analytic_solution(backend, sampler, order):
    """Require a half or a quarter of the error with twice the steps; DDIM with eta 0 is Euler's method here."""
    with mock.patch.dict(SOLVERS, {"euler": euler, "heun": heun}):
        errors = [largest_error(backend, sampler, steps) for steps in (16, 32, 64)]
    assert np.abs(np.log2(np.divide(errors[:-1], errors[1:])) - order).max() < 0.3, errors
    assert errors[-1] < 0.05


def test_ddim_is_eulers_method_on_the_straight_path():
    process = Flow()
    times = process.times(7)
    first, second = (solver(process, times, SimpleNamespace(eta=0.0)) for solver in (euler, SOLVERS["ddim"]))
    for name in ("xstart", "before", "x_t", "noise"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-14)


def test_flow_matching_trains_by_the_error_of_the_velocity(backend):
    method = backend.module("methods.diffusion").Diffusion(flow_of(backend))
    draws = BatchDraws(NoiseTape(2), 4, (0, 3))
    images = np.random.default_rng(1).uniform(size=(2, 3, 8, 8))
    masks = (images[:, :1] > 0.5).astype(np.float64)
    network = BestNetwork(backend)
    losses = method.losses(network, tensor(backend, images), tensor(backend, masks), draws)
    t = draws.uniform(TRAIN_TIMESTEP)
    noise = draws.normal(TRAIN_NOISE, SHAPE)
    mixed = (1 - t).reshape(-1, 1, 1, 1) * masks + t.reshape(-1, 1, 1, 1) * noise
    predicted = array(backend, network(tensor(backend, mixed), tensor(backend, 1000 * t)))
    expected = ((predicted - (noise - masks)) ** 2).mean((1, 2, 3))
    assert set(losses) == {"total", "loss", "loss_diff"}
    for value in losses.values():
        np.testing.assert_allclose(array(backend, value), expected, rtol=1e-10)

"""Compare the rows of every sampler with closed forms in float64."""

from types import SimpleNamespace

import numpy as np
import pytest

from guided_diffusion_core.config import SamplingConfig
from guided_diffusion_core.diffusion.gaussian import GaussianProcess
from guided_diffusion_core.diffusion.process import xstart_coefficients
from guided_diffusion_core.diffusion.schedule import (
    DiffusionTables,
    ModelMeanType,
    ModelVarType,
    get_named_beta_schedule,
    respace,
    sampling_timesteps,
)
from guided_diffusion_core.diffusion.solvers import SOLVERS
from guided_diffusion_core.errors import UserError

SCHEDULES = [("linear", 1000), ("linear", 25), ("cosine", 1000), ("cosine", 1)]


def process_on(name, steps, variance=ModelVarType.FIXED_SMALL, mean=ModelMeanType.EPSILON):
    return GaussianProcess(get_named_beta_schedule(name, steps), mean, variance)


def rows(process, sampler, steps=0, **settings):
    """Return the `Steps` of a sampler with its arrays in ascending order of time, like the tables of the process."""
    found = SOLVERS[sampler](process, process.times(steps), SamplingConfig(**{"eta": 0.0, **settings}))
    assert found.times.tolist() == process.times(steps).tolist()
    turned = {name: getattr(found, name)[::-1] for name in ("xstart", "before", "x_t", "noise")}
    bounds = None if found.log_variance is None else [values[::-1] for values in found.log_variance]
    return SimpleNamespace(**turned, log_variance=bounds)


@pytest.fixture(params=SCHEDULES, ids=str)
def process(request):
    return process_on(*request.param)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_keeps_the_marginal(process, eta):
    """Require the mean sqrt(abar') x_0 and the variance 1 - abar' of x_{t-1} for any eta (DDIM, lemma 1)."""
    found = rows(process, "ddim", eta=eta)
    close(found.xstart + found.x_t * process.sqrt_alphas_cumprod, np.sqrt(process.alphas_cumprod_prev))
    close(found.x_t**2 * (1 - process.alphas_cumprod) + found.noise**2, 1 - process.alphas_cumprod_prev)
    close(found.noise, eta * np.sqrt(process.posterior_variance))
    assert found.noise[0] == 0 and not found.before.any()


@pytest.mark.parametrize("sampler, settings", [("ddim", {"eta": 1.0}), ("ancestral", {})])
def test_noisy_samplers_draw_from_the_posterior(process, sampler, settings):
    found = rows(process, sampler, **settings)
    close(found.xstart, process.posterior_mean_coef1)
    close(found.x_t, process.posterior_mean_coef2)
    close(found.noise**2, process.posterior_variance)
    assert not found.before.any()


@pytest.mark.parametrize("name, steps", SCHEDULES)
def test_the_variance_of_the_ancestral_sampler(name, steps):
    """Compare with the tables of the respaced process, for fixed and learned variances."""
    for visits in {0, 1, min(steps, 7)}:
        whole = process_on(name, steps)
        kept = DiffusionTables(respace(whole.betas, sampling_timesteps(steps, visits))[0])
        large = rows(process_on(name, steps, ModelVarType.FIXED_LARGE), "ancestral", visits)
        close(large.noise[1:] ** 2, kept.betas[1:])
        learned = rows(process_on(name, steps, ModelVarType.LEARNED_RANGE), "ancestral", visits)
        close(learned.noise, np.arange(len(kept.betas)) > 0)
        close(learned.log_variance[0], kept.posterior_log_variance_clipped)
        close(learned.log_variance[1], kept.log_betas)
        assert large.noise[0] == learned.noise[0] == 0


@pytest.mark.parametrize("name, steps", [schedule for schedule in SCHEDULES if schedule[1] > 2])
def test_dpm_solver_is_exact_for_predictions_linear_in_lambda(name, steps):
    """Compare a step with the solution of dx / d lambda = -sigma^2 x + alpha x_0 (DPM-Solver++, eq. 8) by quadrature.

    x_0 is linear in lambda here, so that only the error of the algorithm, of order h^3, is left.
    """
    process = process_on(name, steps)
    row = rows(process, "dpm-solver++")
    alpha = process.sqrt_alphas_cumprod
    sigma = process.sqrt_one_minus_alphas_cumprod
    lam = np.log(alpha / sigma)
    for t in (1, process.num_timesteps // 2, process.num_timesteps - 2):
        h = lam[t - 1] - lam[t]
        nodes, weights = np.polynomial.legendre.leggauss(30)
        s = lam[t] + h * (nodes + 1) / 2
        x_t = 0.7
        constant = -0.4
        slope = 1.3
        exact = sigma[t - 1] / sigma[t] * x_t + sigma[t - 1] * h / 2 * np.sum(
            weights * np.exp(s) * (constant + slope * (s - lam[t]))
        )
        found = row.x_t[t] * x_t + row.xstart[t] * constant + row.before[t] * (constant + slope * (lam[t + 1] - lam[t]))
        own_error = alpha[t - 1] * slope * (h / 2 * (1 - np.exp(-h)) - (h - 1 + np.exp(-h)))
        np.testing.assert_allclose(found - own_error, exact, rtol=1e-9)
        assert abs(own_error) < h**3 * alpha[t - 1] * slope / 4


def test_dpm_solver_begins_and_ends_with_ddim(process):
    """Compare with DDIM with eta 0, which is the first order (DPM-Solver++, section 4.1); the last step gives x_0."""
    found = rows(process, "dpm-solver++")
    first_order = rows(process, "ddim")
    close(found.xstart + found.before, first_order.xstart)
    close(found.x_t, first_order.x_t)
    assert found.before[-1] == found.before[0] == 0 and (found.before[1:-1] < 0).all()
    assert found.xstart[0] == 1 and found.x_t[0] == 0 and not found.noise.any()


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_ddim_refuses_other_eta(eta):
    with pytest.raises(UserError, match="--eta"):
        rows(process_on("linear", 25), "ddim", eta=eta)


@pytest.mark.parametrize("mean", ModelMeanType)
def test_the_mask_follows_from_any_prediction(process, mean):
    process.model_mean_type = mean
    t = process.times(0)
    x_start = 0.3
    noise = -1.7
    a, b = process.mix(t)
    c, d = process.target(t)
    x_t_coef, prediction_coef = xstart_coefficients(process, t)
    found = x_t_coef * (a * x_start + b * noise) + prediction_coef * (c * x_start + d * noise)
    np.testing.assert_allclose(found, x_start, rtol=1e-6)

"""Compare the numbers of the diffusion with closed forms in float64."""

import math

import numpy as np
import pytest

from guided_diffusion_core.diffusion.schedule import (
    DiffusionTables,
    choose_timesteps,
    get_named_beta_schedule,
    quantile_place,
    respace,
    sampling_timesteps,
    space_timesteps,
)
from guided_diffusion_core.errors import UserError

PROCESSES = [("linear", 1000), ("linear", 25), ("cosine", 1000), ("cosine", 1)]


@pytest.fixture(params=PROCESSES, ids=str)
def tables(request):
    return DiffusionTables(get_named_beta_schedule(*request.param))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_cosine_schedule_follows_its_function():
    def f(time):
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    tables = DiffusionTables(get_named_beta_schedule("cosine", 100))
    close(tables.alphas_cumprod[:-1], [f((t + 1) / 100) / f(0) for t in range(99)])
    assert tables.betas[-1] == 0.999


def test_posterior_is_bayes_rule(tables):
    """Compare with N(x_t; sqrt(alpha) x, beta) N(x; sqrt(abar') x_0, 1 - abar') as one Gaussian of x, for t > 0."""
    alphas = 1 - tables.betas[1:]
    prior = 1 - tables.alphas_cumprod_prev[1:]
    precision = alphas / tables.betas[1:] + 1 / prior
    close(tables.posterior_variance[1:], 1 / precision)
    close(tables.posterior_mean_coef2[1:], np.sqrt(alphas) / tables.betas[1:] / precision)
    close(tables.posterior_mean_coef1[1:], np.sqrt(tables.alphas_cumprod_prev[1:]) / prior / precision)
    assert tables.posterior_variance[0] == 0


def test_first_step_has_finite_logarithms(tables):
    second = tables.posterior_variance[1] if tables.num_timesteps > 1 else tables.betas[0]
    close(np.exp(tables.posterior_log_variance_clipped[0]), second)
    close(tables.fixed_large_variance, np.append(second, tables.betas[1:]))
    close(np.exp(tables.fixed_large_log_variance), tables.fixed_large_variance)


def test_tables_invert_each_other(tables):
    x_start = 0.3
    noise = -1.7
    x_t = tables.sqrt_alphas_cumprod * x_start + tables.sqrt_one_minus_alphas_cumprod * noise
    np.testing.assert_allclose(
        tables.sqrt_recip_alphas_cumprod * x_t - tables.sqrt_recipm1_alphas_cumprod * noise, x_start, rtol=1e-6
    )


@pytest.mark.parametrize("betas", [[], [0.1, 0.0], [0.1, 1.0], [[0.1]], [float("nan")]])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(ValueError, match="betas"):
        DiffusionTables(betas)


@pytest.mark.parametrize("count", [1, 2, 64, 1000])
def test_quantile_is_numpys(count):
    values = np.sort(np.random.default_rng(count).standard_normal(count))
    for quantile in (0.0, 0.3, 0.995, 1.0):
        lower, upper, share = quantile_place(count, quantile)
        close((1 - share) * values[lower] + share * values[upper], np.quantile(values, quantile))
    assert quantile_place(count) == quantile_place(count, 0.995)


def test_respaced_process_has_the_same_alpha_bar():
    betas = get_named_beta_schedule("linear", 1000)
    kept, timestep_map = respace(betas, {999, 0, 500, 3})
    assert timestep_map == (0, 3, 500, 999)
    close(DiffusionTables(kept).alphas_cumprod, DiffusionTables(betas).alphas_cumprod[list(timestep_map)])


@pytest.mark.parametrize("steps", [set(), {-1}, {10}])
def test_respacing_refuses_steps_outside(steps):
    with pytest.raises(ValueError, match="0 to 9"):
        respace(np.full(10, 0.1), steps)


@pytest.mark.parametrize(
    "counts, expected",
    [
        ([10], range(10)),
        ("1,1", (0, 5)),
        ("0,2", (5, 9)),
        ("2,3", (0, 4, 5, 7, 9)),
        ("ddim5", range(0, 10, 2)),
        ("ddim4", range(0, 10, 3)),
    ],
)
def test_spacing(counts, expected):
    assert space_timesteps(10, counts) == tuple(expected)


@pytest.mark.parametrize("counts", ["11", "6,1", "ddim7", "ddim11", "ddimx", "a,b", "", "-1,3", "0", []])
def test_impossible_spacing_is_refused(counts):
    with pytest.raises(UserError, match="--timestep_respacing"):
        space_timesteps(10, counts)


def test_sampling_visits_the_trained_steps_evenly():
    assert sampling_timesteps(1000, 0) == tuple(range(999, -1, -1)) == sampling_timesteps(1000, 1000)
    assert sampling_timesteps(1000, 1) == (999,)
    assert sampling_timesteps(1000, 5) == (999, 749, 500, 250, 0)
    assert sampling_timesteps(1, 0) == sampling_timesteps(1, 1) == (0,)
    for steps in range(2, 50):
        visited = sampling_timesteps(50, steps)
        assert len(set(visited)) == steps and visited[0] == 49 and visited[-1] == 0
        gaps = -np.diff(visited)
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("steps", [-1, 51])
def test_impossible_sampling_steps_are_refused(steps):
    with pytest.raises(UserError, match="--sample_steps"):
        sampling_timesteps(50, steps)


@pytest.mark.parametrize(
    "name, steps, flag", [("linear", 20, "--diffusion_steps"), ("quadratic", 100, "--noise_schedule")]
)
def test_impossible_schedule_is_refused(name, steps, flag):
    with pytest.raises(UserError, match=flag):
        get_named_beta_schedule(name, steps)


def test_time_steps_are_drawn_by_their_weights():
    weights = np.array([1.0, 3.0, 4.0])
    uniforms = (np.arange(8000) + 0.5) / 8000
    indices, importance = choose_timesteps(weights, uniforms)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(indices), [1000, 3000, 4000])
    close(np.mean(importance * (indices == 0)), 1 / 3)  # the objective's mean stays the plain one
    close(np.mean(importance), 1)


def test_uniform_time_steps():
    indices, importance = choose_timesteps(np.ones(4), [0.0, 0.25, np.nextafter(0.75, 0), np.nextafter(1, 0)])
    np.testing.assert_array_equal(indices, [0, 1, 2, 3])  # [i / 4, (i + 1) / 4) gives i
    np.testing.assert_array_equal(importance, 1)

"""Test the samplers of either backend in float64: their limits, their noise and their time steps."""

import numpy as np
import pytest
from support.identities import NOISE, X_START, close, network_like
from support.toy import ToyNetwork, array, draws, framework, make_diffusion, process_through, tensor

from guided_diffusion_core.diffusion.schedule import ModelMeanType, ModelVarType

pytestmark = pytest.mark.usefixtures("float64")


def test_ddim_with_eta_1_is_the_ancestral_sampler(backend):
    diffusion = make_diffusion(backend, steps=30, variance=ModelVarType.FIXED_SMALL)
    network = ToyNetwork(backend, learn_sigma=False, dtype="float64")
    for t in ([0, 1], [15, 29]):
        arguments = network, tensor(backend, X_START), tensor(backend, np.array(t)), tensor(backend, NOISE)
        ancestral = diffusion.p_sample(*arguments)
        ddim = diffusion.ddim_sample(*arguments, eta=1.0)
        for part in ancestral:
            close(array(backend, ddim[part]), array(backend, ancestral[part]))


def test_a_share_above_1_spoils_few_ancestral_steps_and_no_ddim_step(backend):
    """Compare the noise for a variance share of 4, which a short training can learn.

    It is five times the posterior's at the last noisy one of 1000 steps, and a million times in 10 steps. DDIM with
    eta 1 adds the posterior's noise.
    """
    learned = np.concatenate([X_START[:, -1:], 0 * NOISE + 7], axis=1)
    arguments = network_like(backend, learned), tensor(backend, X_START), tensor(backend, np.array([1, 1]))
    for steps, least, most in ((1000, 4, 6), (10, 1e6, 2e6)):
        diffusion = make_diffusion(backend, 1000, mean=ModelMeanType.START_X, visits=steps)
        ancestral, ddim = (
            np.abs(
                array(backend, sample(*arguments, tensor(backend, NOISE), **settings)["sample"])
                - array(backend, sample(*arguments, tensor(backend, 0 * NOISE), **settings)["sample"])
            )
            / np.abs(NOISE)
            for sample, settings in ((diffusion.p_sample, {}), (diffusion.ddim_sample, {"eta": 1.0}))
        )
        posterior = np.sqrt(diffusion.posterior_variance[1])
        close(ddim, np.full(NOISE.shape, posterior), 1e-8)
        close(ancestral, posterior * (diffusion.betas[1] / diffusion.posterior_variance[1]) ** 2 + 0 * NOISE, 1e-8)
        assert least < ancestral.mean() / posterior < most


def test_no_noise_at_the_last_step(backend):
    diffusion = make_diffusion(backend)
    network = ToyNetwork(backend, dtype="float64")
    arguments = network, tensor(backend, X_START), tensor(backend, np.array([0, 1]))
    for sample in (diffusion.p_sample, lambda *given: diffusion.ddim_sample(*given, eta=0.5)):
        quiet, loud = (
            array(backend, sample(*arguments, tensor(backend, noise))["sample"]) for noise in (0 * NOISE, NOISE)
        )
        np.testing.assert_array_equal(quiet[0], loud[0])
        assert np.abs(quiet[1] - loud[1]).min() > 0


@pytest.mark.parametrize("sampler", ["p_sample_loop_known", "ddim_sample_loop_known", "dpm_solver_sample_loop_known"])
def test_a_case_is_sampled_the_same_alone_and_in_a_batch(backend, sampler):
    diffusion = make_diffusion(backend, visits=4)
    noise = dict(zip((0, 33, 66, 99, "initial"), draws(5, 5, NOISE.shape)))

    def sample(cases):
        network = ToyNetwork(backend, dtype="float64")
        results = getattr(diffusion, sampler)(
            network,
            None,
            tensor(backend, X_START[cases]),
            tensor(backend, noise["initial"][cases]),
            lambda t: tensor(backend, noise[t][cases]),
            **({"eta": 1.0} if "ddim" in sampler else {}),
        )
        assert [int(t[0]) for t in network.times] == [99, 66, 33, 0]
        return [array(backend, value) for value in results]

    together = sample([0, 1])
    for part, alone, other in zip(together, sample([0]), sample([1])):
        assert part.dtype == np.float64
        close(part, np.concatenate([alone, other]))
    mask, x_noisy, img, cal, cal_out = together
    close(x_noisy, np.concatenate([X_START[:, :-1], noise["initial"]], axis=1))
    np.testing.assert_array_equal(img, X_START)
    assert mask.shape == cal.shape == cal_out.shape == NOISE.shape


def even_in_lambda(steps, first=-2.0, last=2.5):
    """Return (alpha_bar, times in the whole process) of `steps` states, descending.

    They are evenly spaced in lambda = log(alpha / sigma), on the continuous linear schedule
    log alpha_bar = -(0.1 u + 9.95 u^2), u in [0, 1].
    """
    lam = np.linspace(last, first, steps)
    logarithm = np.log1p(np.exp(-2 * lam))  # -log alpha_bar
    u = (np.sqrt(0.01 + 4 * 9.95 * logarithm) - 0.1) / (2 * 9.95)
    return np.exp(-logarithm), 1000 * u


def solved(backend, sampler, steps, network, mean, **settings):
    diffusion = process_through(backend, *even_in_lambda(steps), mean=mean)
    return array(
        backend,
        getattr(diffusion, sampler)(
            network, None, tensor(backend, X_START), tensor(backend, NOISE), clip_denoised=False, **settings
        )[0],
    )


@pytest.mark.parametrize("mean", [ModelMeanType.EPSILON, ModelMeanType.START_X])
def test_samplers_converge_to_one_solution(backend, mean):
    """Require order 1 of DDIM and order 2 of DPM-Solver++: a half and a quarter of the error with twice the steps."""
    network = ToyNetwork(backend, dtype="float64")
    steps = (20, 40, 80)
    fine, finer = (solved(backend, "dpm_solver_sample_loop_known", n, network, mean) for n in (320, 640))
    solution = finer + (finer - fine) / 3  # Richardson's extrapolation
    for sampler, order in (("ddim_sample_loop_known", 1), ("dpm_solver_sample_loop_known", 2)):
        errors = [np.abs(solved(backend, sampler, n, network, mean) - solution).max() for n in steps]
        ratios = np.log2(np.divide(errors[:-1], errors[1:]))
        assert np.abs(ratios - order).max() < 0.3, (sampler, errors)
    assert errors[-1] < 2e-3


def test_every_sampler_gives_the_distribution_of_the_data(backend):
    """Sample with the best prediction for pixels of N(0.3, 0.25).

    The deterministic samplers transport each x_T to its place in this distribution; the others draw from it.
    """
    centre = 0.3
    spread = 0.5
    abar, times = even_in_lambda(60, last=4.5)
    alpha, sigma = (dict(zip(times, np.sqrt(v))) for v in (abar, 1 - abar))

    def network(x, t):
        a, s = (table[float(array(backend, t)[0])] for table in (alpha, sigma))
        gain = a * spread**2 / (a**2 * spread**2 + s**2)
        m = array(backend, x)[:, -1:]
        return (tensor(backend, centre + gain * (m - a * centre)), tensor(backend, 0 * m + 0.5))

    noise = [draw.astype(np.float64) for draw in draws(9, 61, (2, 1, 64, 64))]
    img = tensor(backend, np.zeros((2, 2, 64, 64)))
    place = centre + spread * noise[-1]
    last = alpha[times[-1]] * centre + np.sqrt((alpha[times[-1]] * spread) ** 2 + sigma[times[-1]] ** 2) * noise[-1]
    fresh = dict(zip(times, noise))
    diffusion = process_through(backend, abar, times, ModelMeanType.START_X, ModelVarType.FIXED_SMALL)
    for sampler, settings, error in (
        ("dpm_solver_sample_loop_known", {}, 0.005),
        ("ddim_sample_loop_known", {}, 0.1),
        ("ddim_sample_loop_known", {"eta": 1.0}, None),
        ("p_sample_loop_known", {}, None),
    ):
        sample = array(
            backend,
            getattr(diffusion, sampler)(
                network,
                None,
                img,
                tensor(backend, last),
                lambda t: tensor(backend, fresh[t]),
                clip_denoised=False,
                **settings,
            )[0],
        )
        assert abs(sample.mean() - centre) < 0.02 and abs(sample.std() - spread) < 0.03, sampler
        if error:
            assert np.abs(sample - place).max() < error, sampler


@pytest.mark.parametrize(
    "sampler, settings, order",
    [
        ("p_sample_loop_known", {}, 1),
        ("ddim_sample_loop_known", {"eta": 1.0}, 1),
        ("ddim_sample_loop_known", {}, 1),
        ("dpm_solver_sample_loop_known", {}, 2),
    ],
)
def test_samplers_converge_to_one_distribution(backend, sampler, settings, order):
    """Sample with the best prediction for a pixel of N(0.3, 0.25).

    The mean of every sampler is 0.3 at any number of steps. The standard deviation converges to 0.5; twice the steps
    leave a half or a quarter of the error. The moments are exact, because a sample is affine in the draws: case 0 is
    sampled without noise, each other case with a single draw of 1 (or none), and its distance from case 0 is the
    factor of the draw.
    """
    centre = 0.3
    spread = 0.5
    errors = []
    cases = 82
    for steps in (20, 40, 80):
        abar, times = even_in_lambda(steps, last=6.5)  # the last step is to x_0: its error is exp(-13)
        alpha = dict(zip(times, np.sqrt(abar)))
        variance = dict(zip(times, 1 - abar))

        def network(x, t, alpha=alpha, variance=variance):
            a, v = (table[float(array(backend, t)[0])] for table in (alpha, variance))
            m = array(backend, x)[:, -1:]
            predicted = centre + a * spread**2 / (a**2 * spread**2 + v) * (m - a * centre)
            return tensor(backend, predicted), tensor(backend, 0 * m + 0.5)

        single = dict(zip(("start", *times), np.eye(cases)[1:, :, None, None, None]))  # (cases, 1, 1, 1) each
        a = alpha[times[-1]]
        v = variance[times[-1]]
        diffusion = process_through(backend, abar, times, ModelMeanType.START_X, ModelVarType.FIXED_SMALL)
        sample = array(
            backend,
            getattr(diffusion, sampler)(
                network,
                None,
                tensor(backend, np.zeros((cases, 2, 1, 1))),
                tensor(backend, a * centre + np.sqrt(a**2 * spread**2 + v) * single["start"]),
                lambda t, single=single: tensor(backend, single[t]),
                clip_denoised=False,
                **settings,
            )[0],
        ).reshape(-1)
        close(sample[0], centre)
        errors.append(abs(np.sqrt(np.sum((sample[1:] - sample[0]) ** 2)) - spread))
    assert np.abs(np.log2(np.divide(errors[:-1], errors[1:])) - order).max() < 0.3, errors


def test_dynamic_thresholding_follows_its_definition(backend):
    """Require clipping of a case whose 0.995 quantile is within [-1, 1], and scaling of another one in its batch."""
    x_start = np.random.default_rng(2).standard_normal((3, 1, 16, 16)) * np.array([0.3, 1.0, 7.0]).reshape(3, 1, 1, 1)
    x_start[0, 0, 3, 3] = 5.0
    found = array(backend, backend.module("solver").dynamic_threshold(tensor(backend, x_start)))
    for case, expected in zip(found, x_start):
        limit = max(1.0, np.quantile(np.abs(expected), 0.995))
        close(case, np.clip(expected, -limit, limit) / limit)
    assert found[0, 0, 3, 3] == 1.0 and np.abs(found[0] - x_start[0]).max() == 4.0


def test_dpm_solver_thresholds_instead_of_clipping(backend):
    diffusion = make_diffusion(backend, mean=ModelMeanType.START_X, variance=ModelVarType.FIXED_SMALL)
    predicted = np.linspace(-4, 2, NOISE.size).reshape(NOISE.shape)
    x = tensor(backend, X_START)
    t = tensor(backend, np.array([0, 40]))
    limit = np.maximum(1, np.quantile(np.abs(predicted), 0.995, axis=(1, 2, 3), keepdims=True))
    for settings, expected in (
        ({}, np.clip(predicted, -1, 1)),
        ({"clip_denoised": False}, predicted),
        ({"dynamic_thresholding": True}, np.clip(predicted, -limit, limit) / limit),
    ):
        found = diffusion.dpm_solver_sample(network_like(backend, predicted), x, t, **settings)
        close(array(backend, found["pred_xstart"]), expected)
        close(array(backend, found["sample"])[0], expected[0])
        first_order = diffusion.ddim_sample(
            network_like(backend, expected), x, t, tensor(backend, NOISE), clip_denoised=False
        )
        close(array(backend, found["sample"]), array(backend, first_order["sample"]))


def test_sampling_draws_its_own_noise_and_shows_progress(backend, capsys):
    diffusion = make_diffusion(backend, steps=25, respacing="3")
    network = ToyNetwork(backend, dtype="float64")
    img = tensor(backend, X_START)
    for sampler in (
        diffusion.p_sample_loop_known,
        diffusion.ddim_sample_loop_known,
        diffusion.dpm_solver_sample_loop_known,
    ):
        first, second = (array(backend, sampler(network, None, img, progress=True)[0]) for _ in range(2))
        assert first.dtype == np.float64 and first.shape == NOISE.shape and np.isfinite(first).all()
        assert np.abs(first - second).max() > 0
    assert "3/3" in capsys.readouterr().err


def test_sampling_keeps_no_graph(backend):
    weight = tensor(backend, np.array(0.9))
    weight.requires_grad = True
    diffusion = make_diffusion(backend, steps=30, variance=ModelVarType.FIXED_SMALL)
    lived = []

    def network(x, t):  # reads no value, which would evaluate what is pending
        return weight * x[:, -1:], weight * x[:, :1]

    for out in diffusion.p_sample_loop_progressive(network, None, tensor(backend, X_START)):
        assert not out["sample"].requires_grad and not out["cal"].requires_grad
        if backend.name == "jittor":
            lived.append(framework(backend).number_of_lived_vars())
    assert lived[3:] == lived[3:4] * len(lived[3:])


@pytest.mark.parametrize("rescale", [False, True])
def test_network_sees_the_trained_time_steps(backend, rescale):
    """Check training and sampling, on the whole schedule, on respaced steps, and on steps of those."""
    scale = 1000 / 50 if rescale else 1
    spaced = make_diffusion(backend, steps=50, respacing="10", rescale_timesteps=rescale)
    few = make_diffusion(backend, steps=50, respacing="10", rescale_timesteps=rescale, visits=3)
    assert few.timestep_map == tuple(spaced.timestep_map[t] for t in (0, 5, 9))
    assert few.original_num_steps == 50
    close(few.alphas_cumprod, spaced.alphas_cumprod[[0, 5, 9]], 1e-13)
    network = ToyNetwork(backend, dtype="float64")
    spaced.training_losses_segmentation(
        network, None, tensor(backend, X_START), tensor(backend, np.array([2, 9])), noise=tensor(backend, NOISE)
    )
    close(network.times[0], np.array([spaced.timestep_map[2], 49]) * scale)
    seen = []

    def step_noise(t):
        seen.append(t)
        return tensor(backend, NOISE)

    few.p_sample_loop_known(network, None, tensor(backend, X_START), tensor(backend, NOISE), step_noise)
    assert seen == list(few.timestep_map)[::-1]
    close(np.stack(network.times[1:])[:, 0], np.array(seen) * scale)

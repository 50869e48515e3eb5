"""Identities that the diffusion of either backend keeps, in float64 on the toy network."""
import numpy as np
import pytest
from toy import ToyData, ToyNetwork, array, draws, framework, make_diffusion, process_through, tensor

from guided_diffusion_core.errors import UserError
from guided_diffusion_core.schedule import (
    DiffusionTables, LossType, ModelMeanType, ModelVarType, get_named_beta_schedule)

LEARNED = (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)
X_START = ToyData().x_start().astype(np.float64)
NOISE = ToyData().noise.astype(np.float64)
TABLES = DiffusionTables(get_named_beta_schedule("linear", 100))

pytestmark = pytest.mark.usefixtures("float64")


def posterior_mean(x_start, x_t, t):
    return per_case(TABLES.posterior_mean_coef1, t) * x_start + per_case(TABLES.posterior_mean_coef2, t) * x_t


def noised(t):
    """The mask at t, noised by NOISE."""
    return (per_case(TABLES.sqrt_alphas_cumprod, t) * X_START[:, -1:]
            + per_case(TABLES.sqrt_one_minus_alphas_cumprod, t) * NOISE)


def per_case(table, t):
    return table[t].reshape(-1, 1, 1, 1)


def network_like(backend, out):
    """A network whose prediction is `out` whatever its input."""
    return lambda x, t: (tensor(backend, out), tensor(backend, np.full(x[:, -1:].shape, 0.5)))


def training_terms(backend, network, t=(3, 17), **settings):
    diffusion = make_diffusion(backend, **settings)
    terms, _ = diffusion.training_losses_segmentation(
        network, None, tensor(backend, X_START), tensor(backend, np.array(t)), noise=tensor(backend, NOISE))
    return terms


def close(found, expected, tolerance=1e-10):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variance", ModelVarType)
def test_every_parametrisation_gives_the_posterior(backend, variance):
    """A network that knows the truth predicts the posterior's mean and x_0, whatever it predicts."""
    t, x_start = np.array([1, 60]), X_START[:, -1:]
    x_t = noised(t)
    previous = posterior_mean(x_start, x_t, t)
    channel = 0.4 * np.sin(x_start + 1)
    smallest, largest = (np.log(per_case(table, t)) for table in (TABLES.posterior_variance, TABLES.betas))
    log_variance = {
        ModelVarType.LEARNED: channel, ModelVarType.FIXED_SMALL: smallest, ModelVarType.FIXED_LARGE: largest,
        ModelVarType.LEARNED_RANGE: smallest + (channel + 1) / 2 * (largest - smallest),
    }[variance] + 0 * x_start
    for mean, truth in ((ModelMeanType.START_X, x_start), (ModelMeanType.EPSILON, NOISE),
                        (ModelMeanType.PREVIOUS_X, previous)):
        out = np.concatenate([truth, channel], axis=1) if variance in LEARNED else truth
        found = make_diffusion(backend, mean=mean, variance=variance).p_mean_variance(
            network_like(backend, out), tensor(backend, np.concatenate([X_START[:, :-1], x_t], axis=1)),
            tensor(backend, t))
        for part, expected in (("mean", previous), ("pred_xstart", x_start), ("log_variance", log_variance),
                               ("variance", np.exp(log_variance)), ("cal", 0.5 + 0 * x_start)):
            close(array(backend, found[part]), expected)


def test_posterior_and_marginal(backend):
    diffusion, t = make_diffusion(backend), np.array([0, 42])
    x_start, x_t = X_START[:, -1:], NOISE
    arguments = tensor(backend, x_start), tensor(backend, x_t), tensor(backend, t)
    mean, variance, log_variance = (
        array(backend, v) for v in diffusion.q_posterior_mean_variance(*arguments))
    # at t = 42 by Bayes' rule; at t = 0 it is x_0 itself
    alpha, prior = 1 - TABLES.betas[42], 1 - TABLES.alphas_cumprod[41]
    precision = alpha / TABLES.betas[42] + 1 / prior
    close(mean[1], (np.sqrt(alpha) / TABLES.betas[42] * x_t[1]
                    + np.sqrt(TABLES.alphas_cumprod[41]) / prior * x_start[1]) / precision)
    close(mean[0], x_start[0])
    close(variance, np.stack([0 * x_t[0], 0 * x_t[1] + 1 / precision]))
    close(np.exp(log_variance[1]), variance[1])
    mean, variance, log_variance = (
        array(backend, v) for v in diffusion.q_mean_variance(arguments[0], arguments[2]))
    sample = array(backend, diffusion.q_sample(arguments[0], arguments[2], tensor(backend, NOISE)))
    close(mean + np.sqrt(variance) * NOISE, sample)
    close(np.exp(log_variance), variance)
    assert variance.shape == x_start.shape


def test_clipping_limits_the_predicted_mask(backend):
    x, t = tensor(backend, X_START), tensor(backend, np.array([3, 17]))
    diffusion = make_diffusion(backend, mean=ModelMeanType.START_X, variance=ModelVarType.FIXED_SMALL)
    for clip, largest in ((True, 1.0), (False, 5.0)):
        network = network_like(backend, np.full(NOISE.shape, 5.0))
        found = diffusion.p_mean_variance(network, x, t, clip_denoised=clip)
        close(array(backend, found["pred_xstart"]), np.full(NOISE.shape, largest))


def test_ddim_with_eta_1_is_the_ancestral_sampler(backend):
    diffusion = make_diffusion(backend, steps=30, variance=ModelVarType.FIXED_SMALL)
    network = ToyNetwork(backend, learn_sigma=False, dtype="float64")
    for t in ([0, 1], [15, 29]):
        arguments = network, tensor(backend, X_START), tensor(backend, np.array(t)), tensor(backend, NOISE)
        ancestral, ddim = diffusion.p_sample(*arguments), diffusion.ddim_sample(*arguments, eta=1.0)
        for part in ancestral:
            close(array(backend, ddim[part]), array(backend, ancestral[part]))


def test_a_share_above_1_spoils_few_ancestral_steps_and_no_ddim_step(backend):
    """What a short training learns, a variance share of 4, is five times the posterior's noise at the last noisy
    one of 1000 steps and a million times in 10; DDIM with eta 1 adds the posterior's."""
    learned = np.concatenate([X_START[:, -1:], 0 * NOISE + 7], axis=1)
    arguments = network_like(backend, learned), tensor(backend, X_START), tensor(backend, np.array([1, 1]))
    for steps, least, most in ((1000, 4, 6), (10, 1e6, 2e6)):
        diffusion = backend.module("respace").with_sampling_steps(
            make_diffusion(backend, 1000, mean=ModelMeanType.START_X), steps)
        ancestral, ddim = (
            np.abs(array(backend, sample(*arguments, tensor(backend, NOISE), **settings)["sample"])
                   - array(backend, sample(*arguments, tensor(backend, 0 * NOISE), **settings)["sample"]))
            / np.abs(NOISE) for sample, settings in ((diffusion.p_sample, {}), (diffusion.ddim_sample, {"eta": 1.0})))
        posterior = np.sqrt(diffusion.posterior_variance[1])
        close(ddim, np.full(NOISE.shape, posterior), 1e-8)
        close(ancestral, posterior * (diffusion.betas[1] / diffusion.posterior_variance[1]) ** 2 + 0 * NOISE, 1e-8)
        assert least < ancestral.mean() / posterior < most


def test_no_noise_at_the_last_step(backend):
    diffusion, network = make_diffusion(backend), ToyNetwork(backend, dtype="float64")
    arguments = network, tensor(backend, X_START), tensor(backend, np.array([0, 1]))
    for sample in (diffusion.p_sample, lambda *given: diffusion.ddim_sample(*given, eta=0.5)):
        quiet, loud = (
            array(backend, sample(*arguments, tensor(backend, noise))["sample"])
            for noise in (0 * NOISE, NOISE))
        np.testing.assert_array_equal(quiet[0], loud[0])
        assert np.abs(quiet[1] - loud[1]).min() > 0


@pytest.mark.parametrize("sampler", ["p_sample_loop_known", "ddim_sample_loop_known", "dpm_solver_sample_loop_known"])
def test_a_case_is_sampled_the_same_alone_and_in_a_batch(backend, sampler):
    diffusion = backend.module("respace").with_sampling_steps(make_diffusion(backend), 4)
    noise = dict(zip((0, 33, 66, 99, "initial"), draws(5, 5, NOISE.shape)))

    def sample(cases):
        network = ToyNetwork(backend, dtype="float64")
        results = getattr(diffusion, sampler)(
            network, None, tensor(backend, X_START[cases]), tensor(backend, noise["initial"][cases]),
            lambda t: tensor(backend, noise[t][cases]), **({"eta": 1.0} if "ddim" in sampler else {}))
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
    """alpha_bar and whole-process times of `steps` states, evenly spaced in lambda = log(alpha / sigma), on the
    continuous linear schedule log alpha_bar = -(0.1 u + 9.95 u^2), u in [0, 1]; descending."""
    lam = np.linspace(last, first, steps)
    logarithm = np.log1p(np.exp(-2 * lam))  # -log alpha_bar
    u = (np.sqrt(0.01 + 4 * 9.95 * logarithm) - 0.1) / (2 * 9.95)
    return np.exp(-logarithm), 1000 * u


def solved(backend, sampler, steps, network, mean, **settings):
    diffusion = process_through(backend, *even_in_lambda(steps), mean=mean)
    return array(backend, getattr(diffusion, sampler)(
        network, None, tensor(backend, X_START), tensor(backend, NOISE), clip_denoised=False, **settings)[0])


@pytest.mark.parametrize("mean", [ModelMeanType.EPSILON, ModelMeanType.START_X])
def test_samplers_converge_to_one_solution(backend, mean):
    """DDIM with order 1, DPM-Solver++ with order 2: twice the steps leave a half and a quarter of the error."""
    network, steps = ToyNetwork(backend, dtype="float64"), (20, 40, 80)
    fine, finer = (solved(backend, "dpm_solver_sample_loop_known", n, network, mean) for n in (320, 640))
    solution = finer + (finer - fine) / 3  # Richardson's extrapolation
    for sampler, order in (("ddim_sample_loop_known", 1), ("dpm_solver_sample_loop_known", 2)):
        errors = [np.abs(solved(backend, sampler, n, network, mean) - solution).max() for n in steps]
        ratios = np.log2(np.divide(errors[:-1], errors[1:]))
        assert np.abs(ratios - order).max() < 0.3, (sampler, errors)
    assert errors[-1] < 2e-3


def test_every_sampler_gives_the_distribution_of_the_data(backend):
    """With the best prediction for pixels of N(0.3, 0.25), the deterministic samplers transport each x_T to its
    place in that distribution, and the others draw from it."""
    centre, spread = 0.3, 0.5
    abar, times = even_in_lambda(60, last=4.5)
    alpha, sigma = (dict(zip(times, np.sqrt(v))) for v in (abar, 1 - abar))

    def network(x, t):
        a, s = (table[float(array(backend, t)[0])] for table in (alpha, sigma))
        gain = a * spread ** 2 / (a ** 2 * spread ** 2 + s ** 2)
        m = array(backend, x)[:, -1:]
        return (tensor(backend, centre + gain * (m - a * centre)), tensor(backend, 0 * m + 0.5))

    noise = [draw.astype(np.float64) for draw in draws(9, 61, (2, 1, 64, 64))]
    img = tensor(backend, np.zeros((2, 2, 64, 64)))
    place = centre + spread * noise[-1]
    last = alpha[times[-1]] * centre + np.sqrt((alpha[times[-1]] * spread) ** 2 + sigma[times[-1]] ** 2) * noise[-1]
    fresh = dict(zip(times, noise))
    diffusion = process_through(backend, abar, times, ModelMeanType.START_X, ModelVarType.FIXED_SMALL)
    for sampler, settings, error in (("dpm_solver_sample_loop_known", {}, 0.005), ("ddim_sample_loop_known", {}, 0.1),
                                     ("ddim_sample_loop_known", {"eta": 1.0}, None), ("p_sample_loop_known", {}, None)):
        sample = array(backend, getattr(diffusion, sampler)(
            network, None, img, tensor(backend, last),
            lambda t: tensor(backend, fresh[t]), clip_denoised=False, **settings)[0])
        assert abs(sample.mean() - centre) < 0.02 and abs(sample.std() - spread) < 0.03, sampler
        if error:
            assert np.abs(sample - place).max() < error, sampler


@pytest.mark.parametrize("sampler, settings, order", [
    ("p_sample_loop_known", {}, 1), ("ddim_sample_loop_known", {"eta": 1.0}, 1), ("ddim_sample_loop_known", {}, 1),
    ("dpm_solver_sample_loop_known", {}, 2)])
def test_samplers_converge_to_one_distribution(backend, sampler, settings, order):
    """With the best prediction for a pixel of N(0.3, 0.25) every sampler's mean is 0.3 at any number of steps, and
    its standard deviation comes to 0.5, twice the steps leaving a half or a quarter of the error.

    A sample is then affine in the draws, so that its moments are exact: case 0 is sampled without noise, each
    other case with a single draw of 1 (or none), and its distance from case 0 is the draw's factor."""
    centre, spread, errors, cases = 0.3, 0.5, [], 82
    for steps in (20, 40, 80):
        abar, times = even_in_lambda(steps, last=6.5)  # the last step is to x_0: its error is exp(-13)
        alpha, variance = dict(zip(times, np.sqrt(abar))), dict(zip(times, 1 - abar))

        def network(x, t):
            a, v = (table[float(array(backend, t)[0])] for table in (alpha, variance))
            m = array(backend, x)[:, -1:]
            predicted = centre + a * spread ** 2 / (a ** 2 * spread ** 2 + v) * (m - a * centre)
            return tensor(backend, predicted), tensor(backend, 0 * m + 0.5)

        single = dict(zip(("start", *times), np.eye(cases)[1:, :, None, None, None]))  # (cases, 1, 1, 1) each
        a, v = alpha[times[-1]], variance[times[-1]]
        diffusion = process_through(backend, abar, times, ModelMeanType.START_X, ModelVarType.FIXED_SMALL)
        sample = array(backend, getattr(diffusion, sampler)(
            network, None, tensor(backend, np.zeros((cases, 2, 1, 1))),
            tensor(backend, a * centre + np.sqrt(a ** 2 * spread ** 2 + v) * single["start"]),
            lambda t: tensor(backend, single[t]), clip_denoised=False, **settings)[0]).reshape(-1)
        close(sample[0], centre)
        errors.append(abs(np.sqrt(np.sum((sample[1:] - sample[0]) ** 2)) - spread))
    assert np.abs(np.log2(np.divide(errors[:-1], errors[1:])) - order).max() < 0.3, errors


def test_dynamic_thresholding_follows_its_definition(backend):
    """A case whose 0.995 quantile lies within [-1, 1] is clipped, another one scaled; each by itself."""
    x_start = np.random.default_rng(2).standard_normal((3, 1, 16, 16)) * np.array([0.3, 1.0, 7.0]).reshape(3, 1, 1, 1)
    x_start[0, 0, 3, 3] = 5.0
    found = array(backend, backend.module("dpm_solver").dynamic_threshold(tensor(backend, x_start)))
    for case, expected in zip(found, x_start):
        limit = max(1.0, np.quantile(np.abs(expected), 0.995))
        close(case, np.clip(expected, -limit, limit) / limit)
    assert found[0, 0, 3, 3] == 1.0 and np.abs(found[0] - x_start[0]).max() == 4.0


def test_dpm_solver_thresholds_instead_of_clipping(backend):
    diffusion = make_diffusion(backend, mean=ModelMeanType.START_X, variance=ModelVarType.FIXED_SMALL)
    predicted = np.linspace(-4, 2, NOISE.size).reshape(NOISE.shape)
    x, t = tensor(backend, X_START), tensor(backend, np.array([0, 40]))
    limit = np.maximum(1, np.quantile(np.abs(predicted), 0.995, axis=(1, 2, 3), keepdims=True))
    for settings, expected in (({}, np.clip(predicted, -1, 1)), ({"clip_denoised": False}, predicted),
                               ({"dynamic_thresholding": True}, np.clip(predicted, -limit, limit) / limit)):
        found = diffusion.dpm_solver_sample(network_like(backend, predicted), x, t, **settings)
        close(array(backend, found["pred_xstart"]), expected)
        close(array(backend, found["sample"])[0], expected[0])
        first_order = diffusion.ddim_sample(
            network_like(backend, expected), x, t, tensor(backend, NOISE), clip_denoised=False)
        close(array(backend, found["sample"]), array(backend, first_order["sample"]))


def test_sampling_draws_its_own_noise_and_shows_progress(backend, capsys):
    diffusion = make_diffusion(backend, steps=25, respacing="3")
    network = ToyNetwork(backend, dtype="float64")
    img = tensor(backend, X_START)
    for sampler in (diffusion.p_sample_loop_known, diffusion.ddim_sample_loop_known,
                    diffusion.dpm_solver_sample_loop_known):
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
    """In training and in sampling, on the schedule and on steps of steps of it."""
    scale = 1000 / 50 if rescale else 1
    spaced = make_diffusion(backend, steps=50, respacing="10", rescale_timesteps=rescale)
    few = backend.module("respace").with_sampling_steps(spaced, 3)
    assert few.timestep_map == tuple(spaced.timestep_map[t] for t in (0, 5, 9))
    assert few.original_num_steps == 50
    close(few.alphas_cumprod, spaced.alphas_cumprod[[0, 5, 9]], 1e-13)
    network = ToyNetwork(backend, dtype="float64")
    spaced.training_losses_segmentation(
        network, None, tensor(backend, X_START), tensor(backend, np.array([2, 9])),
        noise=tensor(backend, NOISE))
    close(network.times[0], np.array([spaced.timestep_map[2], 49]) * scale)
    seen = []

    def step_noise(t):
        seen.append(t)
        return tensor(backend, NOISE)

    few.p_sample_loop_known(network, None, tensor(backend, X_START), tensor(backend, NOISE), step_noise)
    assert seen == list(few.timestep_map)[::-1]
    close(np.stack(network.times[1:])[:, 0], np.array(seen) * scale)


def test_sampling_steps_of_an_unspaced_process(backend):
    gaussian = backend.module("gaussian_diffusion").GaussianDiffusion(
        betas=TABLES.betas, model_mean_type=ModelMeanType.START_X, model_var_type=ModelVarType.LEARNED,
        loss_type=LossType.KL, rescale_timesteps=True)
    few = backend.module("respace").with_sampling_steps(gaussian, 1)
    close(few.alphas_cumprod, TABLES.alphas_cumprod[-1:])
    assert few.timestep_map == (99,)
    kept = ("model_mean_type", "model_var_type", "loss_type", "rescale_timesteps", "original_num_steps")
    assert all(getattr(few, name) == getattr(gaussian, name) for name in kept)
    with pytest.raises(UserError, match="--sample_steps"):
        backend.module("respace").with_sampling_steps(few, 2)


def numpy_vb(mean, log_variance, x_t, t):
    """The bound's term in bits per pixel, from its definition (DDPM, eq. 5) in numpy."""
    x_start = X_START[:, -1:]
    squared = (posterior_mean(x_start, x_t, t) - mean) ** 2
    true_variance = per_case(np.exp(TABLES.posterior_log_variance_clipped), t)
    variance = np.exp(log_variance)
    kl = np.log(np.sqrt(variance / true_variance)) + (true_variance + squared) / (2 * variance) - 0.5

    def cdf(x):
        z = (x - mean) / np.sqrt(variance)
        return 1 / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z ** 3)))

    # the mask is 0 or 1: an inner bin, or the last one, which reaches to infinity
    above, below = cdf(x_start + 1 / 255), cdf(x_start - 1 / 255)
    probability = np.where(x_start > 0.999, 1 - below, above - below)
    nll = -np.log(np.maximum(probability, 1e-12))
    return np.where(t == 0, nll.mean((1, 2, 3)), kl.mean((1, 2, 3))) / np.log(2)


@pytest.mark.parametrize("loss, scale", [(LossType.KL, 1), (LossType.RESCALED_KL, 100)])
def test_variational_bound_alone(backend, loss, scale):
    t = np.array([0, 40])
    x_t = noised(t)
    out = np.concatenate([0.9 * X_START[:, -1:] + 0.03 * NOISE, 0.1 * NOISE - 3], axis=1)
    terms = training_terms(backend, network_like(backend, out), t, mean=ModelMeanType.START_X,
                           variance=ModelVarType.LEARNED, loss=loss)
    mean = posterior_mean(out[:, :1], x_t, t)
    assert set(terms) == {"loss", "vb", "loss_cal"}
    close(array(backend, terms["loss"]), scale * numpy_vb(mean, out[:, 1:], x_t, t), 1e-8)
    close(array(backend, terms["vb"]), array(backend, terms["loss"]))


def test_bound_trains_the_variance_alone_beside_a_squared_error(backend):
    for loss, trains_mean in ((LossType.MSE, False), (LossType.KL, True)):
        network = ToyNetwork(backend, dtype="float64")
        gradient = network.gradient(training_terms(backend, network, loss=loss)["vb"].sum())
        assert (np.abs(gradient[:2]).min() > 0) == trains_mean and abs(gradient[2]) > 0
        assert trains_mean or not gradient[:2].any()


def test_training_data_is_left_alone_and_labels_are_merged(backend):
    x_start = X_START.copy()
    x_start[:, -1:] *= np.array([1.0, 4.0]).reshape(2, 1, 1, 1)
    given, terms = tensor(backend, x_start), []
    for data in (given, tensor(backend, X_START)):
        found, out = make_diffusion(backend).training_losses_segmentation(
            ToyNetwork(backend, dtype="float64"), None, data, tensor(backend, np.array([3, 17])),
            noise=tensor(backend, NOISE))
        terms.append({name: array(backend, value) for name, value in found.items()})
        assert tuple(out.shape) == NOISE.shape
    np.testing.assert_array_equal(array(backend, given), x_start)
    for name in terms[0]:
        np.testing.assert_array_equal(terms[0][name], terms[1][name])


def test_network_of_other_channels_is_refused(backend):
    with pytest.raises(ValueError, match="learn_sigma"):
        training_terms(backend, ToyNetwork(backend, learn_sigma=False, dtype="float64"))


def test_total_loss(backend):
    terms = {"loss": tensor(backend, np.array([1.0, 3.0])), "loss_cal": tensor(backend, np.array([0.1, 0.2]))}
    total = backend.module("gaussian_diffusion").total_loss(terms, tensor(backend, np.array([1.0, 0.5])))
    close(array(backend, total).reshape(()), (1.0 + 1.5 + 1.0 + 2.0) / 2)


def test_calibration_is_blended_case_by_case(backend):
    rs = np.random.RandomState(0)
    sample = rs.standard_normal((5, 1, 8, 8))
    cal = np.where(sample > 0, 0.9, 0.1)  # agrees
    cal[1] = np.where(sample[1] > 0, 0.1, 0.9)  # differs
    sample[2] = -1.0  # only cal holds something
    sample[3], cal[3] = -1.0, 0.0  # both empty
    cal[4] = 0.0  # only the sample holds something
    found = array(backend, backend.module("gaussian_diffusion").blend_calibration(
        tensor(backend, sample), tensor(backend, cal)))
    weights = np.array([0.5, 0.25, 0.25, 0.5, 0.25]).reshape(-1, 1, 1, 1)
    kept = np.where(weights == 0.5, 0.5, 1.0)
    close(found, np.clip(kept * cal + weights * sample, 0, 1))


def test_schedule_sampler(backend):
    resample = backend.module("resample")
    sampler = resample.create_named_schedule_sampler("uniform", make_diffusion(backend, respacing="10"))
    t, weights = sampler.sample(np.array([0.0, 0.55, 0.999]))
    assert array(backend, t).tolist() == [0, 5, 9] and "int" in str(t.dtype)
    assert array(backend, weights).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(UserError, match="uniform or loss-second-moment"):
        resample.create_named_schedule_sampler("largest", make_diffusion(backend))


def test_time_steps_by_the_second_moment_of_their_losses(backend):
    """Uniform until each of the four has two losses; then by the last two of each."""
    resample, diffusion = backend.module("resample"), make_diffusion(backend, respacing="4")
    sampler = resample.LossSecondMomentResampler(diffusion, history_per_term=2, uniform_prob=0.1)
    for ts, losses in (([0, 1, 2, 0, 0], [9, 1, 2, 3, 1]), ([1, 2, 3], [1, 0, 0])):
        sampler.update_with_losses(np.array(ts), np.array(losses, np.float32))
        close(sampler.weights(), np.ones(4))
    sampler.update_with_losses(np.array([3]), np.array([0.0]))
    roots = np.sqrt([(9 + 1) / 2, 1, (4 + 0) / 2, 0])  # the 9 has gone
    probability = 0.9 * roots / roots.sum() + 0.1 / 4
    close(sampler.weights(), probability)
    uniforms = (np.arange(4000) + 0.5) / 4000
    t, weights = (array(backend, value) for value in sampler.sample(uniforms))
    close(np.bincount(t) / 4000, probability, 1e-3)
    close(weights, 1 / (4 * probability[t]))
    assert weights.mean() == pytest.approx(1, rel=1e-3), "the objective keeps its mean"
    named = resample.create_named_schedule_sampler("loss-second-moment", diffusion)
    assert named.history.losses.shape == (4, 10) and named.uniform_prob == 0.001


def test_losses_of_zero_leave_time_steps_uniform(backend):
    sampler = backend.module("resample").LossSecondMomentResampler(make_diffusion(backend, respacing="3"), 1)
    sampler.update_with_losses(np.arange(3), np.zeros(3))
    close(sampler.weights(), np.ones(3))


def test_normal_distribution_function(backend):
    from scipy.stats import norm

    x = np.linspace(-6, 6, 201)
    found = array(backend, backend.module("losses").approx_standard_normal_cdf(tensor(backend, x)))
    assert np.abs(found - norm.cdf(x)).max() < 2e-4

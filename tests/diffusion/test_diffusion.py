"""Test identities of the process and the objective of either backend, in float64 on the toy network."""

import numpy as np
import pytest
from support.identities import NOISE, TABLES, X_START, close, network_like, noised, per_case, posterior_mean
from support.toy import ToyNetwork, array, make_diffusion, tensor

from guided_diffusion_core.diffusion.schedule import LossType, ModelMeanType, ModelVarType
from guided_diffusion_core.errors import UserError

pytestmark = pytest.mark.usefixtures("float64")


def training_terms(backend, network, t=(3, 17), **settings):
    diffusion = make_diffusion(backend, **settings)
    terms, _ = diffusion.training_losses_segmentation(
        network, None, tensor(backend, X_START), tensor(backend, np.array(t)), noise=tensor(backend, NOISE)
    )
    return terms


@pytest.mark.parametrize("variance", ModelVarType)
def test_every_parametrisation_gives_the_posterior(backend, variance):
    """Require the posterior's mean and x_0 from a network that knows the truth, in every parametrisation."""
    t = np.array([1, 60])
    x_start = X_START[:, -1:]
    x_t = noised(t)
    previous = posterior_mean(x_start, x_t, t)
    channel = 0.4 * np.sin(x_start + 1)
    smallest, largest = (np.log(per_case(table, t)) for table in (TABLES.posterior_variance, TABLES.betas))
    log_variance = {
        ModelVarType.FIXED_SMALL: smallest,
        ModelVarType.FIXED_LARGE: largest,
        ModelVarType.LEARNED_RANGE: smallest + (channel + 1) / 2 * (largest - smallest),
    }[variance] + 0 * x_start
    for mean, truth in (
        (ModelMeanType.START_X, x_start),
        (ModelMeanType.EPSILON, NOISE),
    ):
        out = np.concatenate([truth, channel], axis=1) if variance == ModelVarType.LEARNED_RANGE else truth
        found = make_diffusion(backend, mean=mean, variance=variance).p_mean_variance(
            network_like(backend, out),
            tensor(backend, np.concatenate([X_START[:, :-1], x_t], axis=1)),
            tensor(backend, t),
        )
        for part, expected in (
            ("mean", previous),
            ("pred_xstart", x_start),
            ("log_variance", log_variance),
            ("variance", np.exp(log_variance)),
            ("cal", 0.5 + 0 * x_start),
        ):
            close(array(backend, found[part]), expected)


def test_posterior_and_marginal(backend):
    diffusion = make_diffusion(backend)
    t = np.array([0, 42])
    x_start = X_START[:, -1:]
    x_t = NOISE
    arguments = tensor(backend, x_start), tensor(backend, x_t), tensor(backend, t)
    mean, variance, log_variance = (array(backend, v) for v in diffusion.q_posterior_mean_variance(*arguments))
    # at t = 42 by Bayes' rule; at t = 0 it is x_0 itself
    alpha = 1 - TABLES.betas[42]
    prior = 1 - TABLES.alphas_cumprod[41]
    precision = alpha / TABLES.betas[42] + 1 / prior
    close(
        mean[1],
        (np.sqrt(alpha) / TABLES.betas[42] * x_t[1] + np.sqrt(TABLES.alphas_cumprod[41]) / prior * x_start[1])
        / precision,
    )
    close(mean[0], x_start[0])
    close(variance, np.stack([0 * x_t[0], 0 * x_t[1] + 1 / precision]))
    close(np.exp(log_variance[1]), variance[1])
    sample = array(backend, diffusion.q_sample(arguments[0], arguments[2], tensor(backend, NOISE)))
    alpha_bar = per_case(TABLES.alphas_cumprod, t)
    close(sample, np.sqrt(alpha_bar) * x_start + np.sqrt(1 - alpha_bar) * NOISE)


def test_clipping_limits_the_predicted_mask(backend):
    x = tensor(backend, X_START)
    t = tensor(backend, np.array([3, 17]))
    diffusion = make_diffusion(backend, mean=ModelMeanType.START_X, variance=ModelVarType.FIXED_SMALL)
    for clip, largest in ((True, 1.0), (False, 5.0)):
        network = network_like(backend, np.full(NOISE.shape, 5.0))
        found = diffusion.p_mean_variance(network, x, t, clip_denoised=clip)
        close(array(backend, found["pred_xstart"]), np.full(NOISE.shape, largest))


def numpy_vb(mean, log_variance, x_t, t):
    """Return the bound's term in bits per pixel, from its definition (DDPM, eq. 5) in numpy."""
    x_start = X_START[:, -1:]
    squared = (posterior_mean(x_start, x_t, t) - mean) ** 2
    true_variance = per_case(np.exp(TABLES.posterior_log_variance_clipped), t)
    variance = np.exp(log_variance)
    kl = np.log(np.sqrt(variance / true_variance)) + (true_variance + squared) / (2 * variance) - 0.5

    def cdf(x):
        z = (x - mean) / np.sqrt(variance)
        return 1 / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    # the mask is 0 or 1: an inner bin, or the last one, which reaches to infinity
    above = cdf(x_start + 1 / 255)
    below = cdf(x_start - 1 / 255)
    probability = np.where(x_start > 0.999, 1 - below, above - below)
    nll = -np.log(np.maximum(probability, 1e-12))
    return np.where(t == 0, nll.mean((1, 2, 3)), kl.mean((1, 2, 3))) / np.log(2)


def test_variational_bound_alone(backend):
    t = np.array([0, 40])
    x_t = noised(t)
    out = np.concatenate([0.9 * X_START[:, -1:] + 0.03 * NOISE, 0.1 * NOISE + 0.3], axis=1)
    network = network_like(backend, out)
    terms = training_terms(backend, network, t, mean=ModelMeanType.START_X, loss=LossType.RESCALED_KL)
    smallest = per_case(TABLES.posterior_log_variance_clipped, t)
    log_variance = smallest + (out[:, 1:] + 1) / 2 * (per_case(TABLES.log_betas, t) - smallest)
    mean = posterior_mean(out[:, :1], x_t, t)
    assert set(terms) == {"loss", "vb", "loss_cal"}
    close(array(backend, terms["loss"]), 100 * numpy_vb(mean, log_variance, x_t, t), 1e-8)
    close(array(backend, terms["vb"]), array(backend, terms["loss"]))


def test_bound_trains_the_variance_alone_beside_a_squared_error(backend):
    for loss, trains_mean in ((LossType.MSE, False), (LossType.RESCALED_KL, True)):
        network = ToyNetwork(backend, dtype="float64")
        gradient = network.gradient(training_terms(backend, network, loss=loss)["vb"].sum())
        assert (np.abs(gradient[:2]).min() > 0) == trains_mean and abs(gradient[2]) > 0
        assert trains_mean or not gradient[:2].any()


def test_training_data_is_left_alone_and_labels_are_merged(backend):
    x_start = X_START.copy()
    x_start[:, -1:] *= np.array([1.0, 4.0]).reshape(2, 1, 1, 1)
    given = tensor(backend, x_start)
    terms = []
    for data in (given, tensor(backend, X_START)):
        found, out = make_diffusion(backend).training_losses_segmentation(
            ToyNetwork(backend, dtype="float64"),
            None,
            data,
            tensor(backend, np.array([3, 17])),
            noise=tensor(backend, NOISE),
        )
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
    # both empty
    sample[3] = -1.0
    cal[3] = 0.0
    cal[4] = 0.0  # only the sample holds something
    found = array(
        backend, backend.module("gaussian_diffusion").blend_calibration(tensor(backend, sample), tensor(backend, cal))
    )
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
    """Require uniform draws until each of the four time steps has two losses, then draws by its last two losses."""
    resample = backend.module("resample")
    diffusion = make_diffusion(backend, respacing="4")
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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("values", [[0.1, 0.1, 0.1], [0.1, 0.2, 0.1], [1 + 2.0**-40] * 3])
def test_one_number_per_case_is_rounded_once(backend, values, dtype, float64):
    """Equal numbers, which PyTorch makes on the device, have the bits of others."""
    runtime = backend.module("runtime")
    like = runtime.to_tensor(np.zeros((3, 2, 4)), dtype)
    found = runtime.to_numpy(backend.module("nn").per_case(np.array(values), like))
    expected = np.broadcast_to(np.array(values).astype(dtype)[:, None, None], (3, 2, 4))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)

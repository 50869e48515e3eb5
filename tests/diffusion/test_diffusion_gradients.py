"""Test that both backends have the same total loss and gradients, in float64 on the toy network."""

import numpy as np
import pytest
from support.backends import BACKENDS, Backend
from support.toy import ToyData, ToyNetwork, array, gradient_of, make_diffusion, tensor

from guided_diffusion_core.diffusion.schedule import LossType, ModelMeanType, ModelVarType

TOLERANCE = 1e-9  # relative to the largest gradient
# Each of the mean, variance and loss types at least once.
SETTINGS = [
    (ModelMeanType.EPSILON, ModelVarType.LEARNED_RANGE, LossType.MSE),
    (ModelMeanType.START_X, ModelVarType.LEARNED_RANGE, LossType.RESCALED_MSE),
    (ModelMeanType.EPSILON, ModelVarType.FIXED_LARGE, LossType.RESCALED_KL),
    (ModelMeanType.START_X, ModelVarType.FIXED_SMALL, LossType.RESCALED_KL),
]


def loss_and_gradient(backend, mean, variance, loss):
    """Return the total loss and its derivative by the toy network's weights, with time steps 3 and 60.

    Time step 0 is left out: there the toy network lies in the far tail of the decoder, where 1 - cdf loses its digits
    and the two frameworks' tanh, one unit in the last place apart, decide the gradient.
    """
    data = ToyData()
    learned = variance == ModelVarType.LEARNED_RANGE
    network = ToyNetwork(backend, learned, dtype="float64")
    diffusion = make_diffusion(backend, mean=mean, variance=variance, loss=loss)
    terms, _ = diffusion.training_losses_segmentation(
        network,
        None,
        tensor(backend, data.x_start(), "float64"),
        tensor(backend, np.array([3, 60])),
        noise=tensor(backend, data.noise, "float64"),
    )
    total = backend.module("gaussian_diffusion").total_loss(terms, tensor(backend, np.array([0.5, 2.0])))
    return array(backend, total).reshape(()), network.gradient(total)


@pytest.fixture
def backends():
    """Return all backends, in float64."""
    backends = [Backend(name) for name in BACKENDS]
    for backend in backends:
        backend.module("runtime").set_precision("float64")
    yield backends
    for backend in backends:
        backend.module("runtime").set_precision("float32")


@pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")
@pytest.mark.parametrize("mean, variance, loss", SETTINGS)
def test_both_backends_have_the_same_gradients(backends, mean, variance, loss):
    (first, gradient), (second, other) = (loss_and_gradient(backend, mean, variance, loss) for backend in backends)
    assert gradient.dtype == other.dtype == np.float64
    assert abs(first - second) <= TOLERANCE * abs(first)
    assert np.abs(gradient - other).max() <= TOLERANCE * np.abs(gradient).max()


@pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")
def test_both_backends_have_the_same_decoder_gradients(backends):
    """Compare them in the first, an inner and the last bin, within two standard deviations of the mean."""
    rs = np.random.RandomState(4)
    log_scales = rs.uniform(-3, 0, size=(3, 50))
    x = np.array([[-1.0], [0.0], [1.0]]) * np.ones(50)
    means = x + rs.uniform(-2, 2, size=x.shape) * np.exp(log_scales)
    found = []
    for backend in backends:
        given = [tensor(backend, value) for value in (means, log_scales)]
        for value in given:
            value.requires_grad = True
        likelihood = backend.module("losses").discretized_gaussian_log_likelihood(
            tensor(backend, x), means=given[0], log_scales=given[1]
        )
        gradients = [gradient_of(backend, likelihood.sum(), value) for value in given]
        found.append([array(backend, likelihood), *gradients])
    for first, second in zip(*found):
        assert np.abs(first).max() > 0.1
        assert np.abs(first - second).max() <= TOLERANCE * np.abs(first).max()

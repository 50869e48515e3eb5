"""Ten training steps of both backends from one seed: the same inputs to the bit, the same losses.

In float64 the losses agree to the last digits that ten steps leave. In float32 training amplifies
rounding: AdamW turns a gradient near zero into a full step, a leaky ReLU changes its slope at
zero, and a batch norm over two values divides by their difference. So the yardstick is PyTorch
against itself from weights that lie one ulp away: up, down, and in random directions.
"""

import numpy as np
import pytest
from support.backends import BACKENDS, Backend
from support.small import RandomDataset, computing, small_config

from guided_diffusion_core.networks.registry import initial_state
from guided_diffusion_core.networks.state import moved_by_one_ulp
from guided_diffusion_core.noise import NoiseTape

STEPS = 10
FIRST_STEP_TOLERANCE = 1e-6  # nothing but one forward pass in float32
pytestmark = pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")


def moved_down(state):
    """Change each value to the next smaller one; see `moved_by_one_ulp`."""
    mirrored = {name: -value for name, value in state.items()}
    return {name: -value for name, value in moved_by_one_ulp(mirrored).items()}


def moved_at_random(state):
    """Change each value by one ulp, up or down at random."""
    generator = np.random.default_rng(8)
    up = moved_by_one_ulp(state)
    down = moved_down(state)
    return {
        name: np.where(generator.uniform(size=value.shape) < 0.5, value, down[name]).astype(value.dtype)
        for name, value in up.items()
    }


def create_loop(name, config):
    return Backend(name).module("train_util").create_train_loop(config, RandomDataset())


def total_losses(name, move=lambda state: state):
    """Return the total loss of each of ten steps, from the perturbed weights of a seed."""
    config = small_config()
    loop = create_loop(name, config)
    runtime = Backend(name).module("runtime")
    runtime.load_state(loop.model, move(initial_state(config.model, config.seed)))
    totals = np.array([values["total"] for _, values in loop.run_loop(STEPS)])
    assert totals.shape == (STEPS,) and np.isfinite(totals).all()
    return totals


def test_float64_losses():
    with computing("float64"):
        pytorch, jittor = (total_losses(name) for name in BACKENDS)
    assert np.ptp(pytorch) > 1e-3, "the steps differ"
    assert np.abs(jittor / pytorch - 1).max() <= 1e-6


def test_float32_losses_within_the_spread_of_one_ulp():
    with computing("float32"):
        pytorch, jittor = (total_losses(name) for name in BACKENDS)
        moved = [total_losses("pytorch", move) for move in (moved_by_one_ulp, moved_down, moved_at_random)]
    spread = max(np.abs(totals / pytorch - 1).max() for totals in moved)
    assert FIRST_STEP_TOLERANCE < spread < 0.1, "one ulp grows, and is no other training"
    difference = np.abs(jittor / pytorch - 1)
    assert difference[0] <= FIRST_STEP_TOLERANCE
    # Over the run, not step by step: which step meets the first kink is chance.
    assert difference.max() <= 3 * spread


class RecordingTape(NoiseTape):
    """A noise tape that records the places of its draws."""

    def __init__(self, seed):
        super().__init__(seed)
        self.places = set()

    def _generator(self, *place):
        self.places.add(place)
        return super()._generator(*place)


def inputs_of_steps(name, steps):
    """Return the inputs of the objective in each forward pass (numpy), the places of the draws, the weights."""
    loop = create_loop(name, small_config(batch_size=4, microbatch=2))
    runtime = Backend(name).module("runtime")
    loop.tape = RecordingTape(loop.tape.seed)
    weights = runtime.state_arrays(loop.model)
    calls = []
    objective = loop.method.process.training_losses_segmentation

    def recorded(model, classifier, x_start, t, model_kwargs=None, noise=None):
        calls.append([runtime.to_numpy(x_start), t, runtime.to_numpy(noise)])
        return objective(model, classifier, x_start, t, model_kwargs, noise)

    loop.method.process.training_losses_segmentation = recorded
    for _ in loop.run_loop(steps):
        pass
    return calls, loop.tape.places, weights


def test_batches_time_steps_noise_and_weights_are_equal_to_the_bit():
    with computing("float32"):
        (calls, places, weights), (others, other_places, other_weights) = (
            inputs_of_steps(name, 2) for name in BACKENDS
        )
    assert len(calls) == len(others) == 4
    for first, second in zip(calls, others):
        for value, other in zip(first, second):
            np.testing.assert_array_equal(value, other)
    assert len({t.tobytes() for _, t, _ in calls}) == 4, "each microbatch has its own"
    assert places == other_places
    sites = {site for site, *_ in places}
    assert sum(site.startswith("dropout/hwm.") for site in sites) == 12, "two in each of six encoder stages"
    assert "dropout/middle_block.0.out_layers.2" in sites
    assert {case for site, _, case, _ in places if site.startswith("dropout/")} == {0, 1, 2, 3}
    for name, value in weights.items():
        np.testing.assert_array_equal(value, other_weights[name])


@pytest.mark.parametrize("layer, shape", [("Dropout", (2, 3, 4, 4)), ("Dropout2d", (2, 3, 4, 4))])
def test_dropout_masks_are_the_tapes(layer, shape):
    tape = NoiseTape(6)
    ones = np.ones(shape, np.float32)
    mask_shape = shape[1:] if layer == "Dropout" else (3, 1, 1)
    expected = tape.keep_mask("dropout/", mask_shape, 0.5, step=7, cases=(4, 9)) * ones
    for name in BACKENDS:
        runtime, nn = (Backend(name).module(module) for module in ("runtime", "nn"))
        dropout = getattr(nn, layer)(0.5)
        dropout.train()
        nn.set_dropout_noise(dropout, tape, 7, (4, 9))
        np.testing.assert_array_equal(runtime.to_numpy(dropout(runtime.to_tensor(ones))), expected)
        dropout.eval()
        np.testing.assert_array_equal(runtime.to_numpy(dropout(runtime.to_tensor(ones))), ones)

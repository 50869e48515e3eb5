"""Train and sample a method of another kind, a network that predicts the mask directly, by the public loop."""

import dataclasses
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from support.small import RandomDataset, small_config
from support.toy import array, framework, tensor

from guided_diffusion_core.config import SamplingConfig
from guided_diffusion_core.methods import METHODS
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.training.stream import TrainingStream

SITE = "direct/shift"  # its own random number: the images' brightness is shifted a little


class Direct:
    """The `Method` of a network that maps images to masks, trained on the squared error; no diffusion."""

    mask_channels = 1
    observes = True

    def __init__(self, backend):
        self.backend = backend
        self.seen = []

    def noise_shapes(self, size):
        return {SITE: (1, 1, 1)}

    def losses(self, network, images, masks, draws):
        shifts = 0.01 * draws.normal(SITE, (1, 1, 1))
        squared = (network(images + tensor(self.backend, shifts)) - masks) ** 2
        loss = squared.reshape(squared.shape[0], -1).mean(1)
        return {"total": loss, "loss": loss}

    def observe(self, draws, losses):
        self.seen.append((list(draws.slots), losses["loss"]))

    def state(self):
        return {"direct/steps": np.array([len(self.seen)])}

    def restore(self, arrays):
        self.seen = [None] * int(arrays["direct/steps"][0])

    def sampler(self, network, sampling, tape):
        def sample(images, keys):
            runtime = self.backend.module("runtime")
            with runtime.no_grad():
                masks = array(self.backend, network(runtime.to_tensor(images)))
            return np.stack([masks] * sampling.num_ensemble)

        return sample


class Bright(RandomDataset):
    """Images whose first channel shows the mask."""

    def __init__(self):
        super().__init__()
        self.masks = (self.images[:, :1] > 0.5).astype(np.float32)


def create_loop(backend, method, steps, microbatch):
    """Build a `TrainLoop` of a convolution with fixed initial weights."""
    train_util = backend.module("train_util")
    network = framework(backend).nn.Conv2d(3, 1, 3, padding=1)
    generator = np.random.default_rng(3)
    weights = {"weight": generator.standard_normal((1, 3, 3, 3)) / 5, "bias": np.zeros(1)}
    backend.module("runtime").load_state(network, {name: np.float32(value) for name, value in weights.items()})
    tape = NoiseTape(1)
    data = train_util.make_loader(TrainingStream(Bright(), tape, 4, steps), 4)
    return train_util.TrainLoop(
        model=network, method=method, data=data, tape=tape, batch_size=4, microbatch=microbatch, lr=0.05
    )


def test_a_method_of_its_own_is_trained_and_sampled(backend):
    method = Direct(backend)
    loop = create_loop(backend, method, 60, microbatch=3)
    losses = [values["total"] for _, values in loop.run_loop(60)]
    assert losses[-1] < 0.15 < losses[0]
    # the method learns of every optimizer step once, with the losses of the whole batch in its order
    assert [slots for slots, _ in method.seen] == [[0, 1, 2, 3]] * 60
    assert method.seen[-1][1].mean() == pytest.approx(losses[-1], rel=1e-5)

    loop.model.eval()
    sample = method.sampler(loop.model, SamplingConfig(num_ensemble=2), NoiseTape(0))
    data = Bright()
    masks = sample(data.images, [f"case{k}" for k in range(6)])
    assert masks.shape == (2, 6, 1, 32, 32)
    assert np.mean((masks[0] > 0.5) == (data.masks > 0.5)) > 0.9


def test_a_method_of_its_own_resumes(backend):
    whole = create_loop(backend, Direct(backend), 6, microbatch=4)
    first = create_loop(backend, Direct(backend), 6, microbatch=4)
    for loop, steps in ((whole, 6), (first, 3)):
        for _ in loop.run_loop(steps):
            pass
    resumed = create_loop(backend, Direct(backend), 6, microbatch=4)
    resumed.restore(3, first.networks())
    assert len(resumed.method.seen) == 3
    for image, mask in list(resumed.data)[3:]:
        resumed.run_step(image, mask)
    for name, arrays in whole.networks().items():
        for key, value in arrays.items():
            np.testing.assert_array_equal(resumed.networks()[name][key], value, err_msg=f"{name} {key}")


def test_a_method_is_found_by_its_name(backend):
    """Add a method by one module with `create(config)` and one entry of the table."""
    module = SimpleNamespace(create=lambda config: ("direct", config.seed))
    package = backend.module("methods").__name__
    config = small_config(seed=7)
    named = dataclasses.replace(config, training=dataclasses.replace(config.training, method="direct"))
    with (
        mock.patch.dict(METHODS, {"direct": "methods.direct"}),
        mock.patch.dict(sys.modules, {f"{package}.direct": module}),
    ):
        assert backend.module("methods").create_method(named) == ("direct", 7)
    assert type(backend.module("methods").create_method(config)).__name__ == "Diffusion"

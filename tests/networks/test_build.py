"""A network and its process from a configuration, directly."""

import numpy as np
import pytest
from support.small import small_config

from guided_diffusion_core import checkpoints
from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.data.phantoms import write_isic_phantoms
from guided_diffusion_core.networks import registry
from guided_diffusion_core.networks.family import Prediction, as_prediction
from guided_diffusion_core.noise import INITIAL_WEIGHT, NoiseTape


@pytest.fixture
def drawn(monkeypatch):
    """Record the sites of the initial weights that any tape draws during the test."""
    sites = []
    generator = NoiseTape._generator

    def noted(self, site, *place):
        if str(site).startswith(INITIAL_WEIGHT):
            sites.append(site)
        return generator(self, site, *place)

    monkeypatch.setattr(NoiseTape, "_generator", noted)
    return sites


@pytest.mark.parametrize("version", ["new", "1"])
def test_build_draws_the_seeds_weights_or_takes_those_given(backend, drawn, version):
    config = small_config(version=version, seed=3, channel_mult="1,2")
    runtime = backend.module("runtime")
    build = backend.module("build").build
    network, process = build(config)
    assert drawn and process.num_timesteps == config.diffusion.diffusion_steps
    expected = registry.initial_state(config.model, 3)
    found = runtime.state_arrays(network)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    drawn.clear()
    given = {name: value + 1 for name, value in expected.items()}
    network, _ = build(config, given)
    assert not drawn
    assert all(np.array_equal(value, given[name]) for name, value in runtime.state_arrays(network).items())


def test_loading_a_checkpoint_draws_no_initial_weights(backend, drawn, tmp_path):
    train, _ = write_isic_phantoms(tmp_path / "isic", 4, 2, 48, seed=1)
    config = small_config(data_name="ISIC", data_dir=str(train), normalisation="RGB / 255", batch_size=2)
    dataset = open_dataset(config.data, config.model.image_size, "Training", need_masks=True)
    create = backend.module("train_util").create_train_loop
    loop = create(config, dataset)
    assert drawn  # a training that starts does draw them
    folder = checkpoints.save(tmp_path / "run", 1, config, loop.networks())
    drawn.clear()
    step, config, networks = checkpoints.load_all(folder)
    resumed = create(config, dataset, step, networks)
    loaded, _, _ = backend.module("script_util").load_model_and_diffusion(folder / "model.safetensors")
    assert drawn == []
    runtime = backend.module("runtime")
    expected = runtime.state_arrays(loop.model)
    for model in (resumed.model, loaded):
        assert all(np.array_equal(value, expected[name]) for name, value in runtime.state_arrays(model).items())


def test_a_prediction_may_come_without_calibration():
    value = np.ones(2)
    calibration = np.zeros(2)
    assert as_prediction(value) == Prediction(value, None)
    assert as_prediction((value, calibration)) == Prediction(value, calibration)
    assert as_prediction(Prediction(value)).calibration is None

"""Test that checkpoints are read as written, in either backend, and that broken or foreign files are refused."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from guided_diffusion_core import checkpoints, config
from guided_diffusion_core.checkpoints import files
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.registry import initial_state, repaired

CONFIG = config.resolve(
    {
        "image_size": 32,
        "num_channels": 32,
        "num_heads": 1,
        "attention_resolutions": "16",
        "seed": 5,
        "normalisation": "RGB / 255",
    },
    preset="fast",
)


@pytest.fixture(scope="module")
def weights():
    """Return a state dict of random numbers, since the initial weights of some layers are zero."""
    state = initial_state(CONFIG.model, seed=5)
    rs = np.random.RandomState(0)
    return {
        name: value + rs.standard_normal(value.shape).astype(value.dtype) if value.dtype == np.float32 else value
        for name, value in state.items()
    }


@pytest.fixture
def saved(tmp_path, weights):
    average = {name: 2 * value for name, value in weights.items()}
    return checkpoints.save(tmp_path, 700, CONFIG, {"model": weights, "ema_0.9999": average})


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert np.array_equal(found[name], value), name


def test_what_is_saved_is_loaded_bitwise_with_its_configuration(saved, weights):
    loaded, arrays = checkpoints.load(saved / "model.safetensors")
    assert saved.name == "step_000700"
    assert loaded == checkpoints.read_config(saved / "ema_0.9999.safetensors") == CONFIG
    assert_same(arrays, weights)


def test_a_file_loads_into_either_backend(saved, weights, backend):
    model, _, loaded = backend.module("script_util").load_model_and_diffusion(saved / "model.safetensors")
    assert loaded == CONFIG
    assert_same(backend.module("runtime").state_arrays(model), weights)


def test_a_file_of_version_1_without_the_random_layer(tmp_path, backend, capsys):
    """Load a file as the original writes it: the missing layer becomes zero, and a line says so."""
    settings = CONFIG.replace(version="1")
    state = initial_state(settings.model, seed=5)
    names = ("hwm.bottleneck_embed.weight", "hwm.bottleneck_embed.bias")
    given = {name: value for name, value in state.items() if name not in names}
    path = checkpoints.save(tmp_path, 1, settings, {"model": given}) / "model.safetensors"
    model, _, loaded = backend.module("script_util").load_model_and_diffusion(path)
    lines = capsys.readouterr().err.splitlines()
    assert loaded == settings and sum("hwm.bottleneck_embed" in line and "zero" in line for line in lines) == 1
    assert_same(
        backend.module("runtime").state_arrays(model), {**given, **{name: np.zeros_like(state[name]) for name in names}}
    )


def test_half_of_the_random_layer_is_a_broken_file(capsys):
    model = CONFIG.replace(version="1").model
    state = initial_state(model, seed=5)
    expected = {name: value.shape for name, value in state.items()}
    del state["hwm.bottleneck_embed.bias"]
    with pytest.raises(UserError, match="1 missing: hwm.bottleneck_embed.bias"):
        checkpoints.check_state(expected, repaired(model, state, "some.safetensors"), "some.safetensors")
    assert capsys.readouterr().err == ""


def test_find_prefers_the_average_and_the_last_checkpoint(tmp_path, saved, weights):
    assert checkpoints.find(saved / "model.safetensors") == saved / "model.safetensors"
    assert checkpoints.find(saved) == saved / "ema_0.9999.safetensors"
    later = checkpoints.save(tmp_path, 800, CONFIG, {"model": weights})
    assert checkpoints.find(tmp_path) == later / "model.safetensors"


@pytest.mark.parametrize("path", ["", "nowhere", "."])
def test_find_refuses_what_is_no_checkpoint(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="expected"):
        checkpoints.find(path)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_cut_file_is_refused(saved, length):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="model.safetensors.*whole checkpoint"):
        checkpoints.load(path)


def test_a_safetensors_file_of_another_origin_is_refused(tmp_path, weights):
    path = tmp_path / "other.safetensors"
    save_file(weights, path)
    with pytest.raises(UserError, match="without this software's configuration"):
        checkpoints.load(path)


def test_weights_of_another_architecture_are_refused_with_all_names(weights):
    arrays = dict(weights)
    arrays["extra.weight"] = arrays.pop("out.2.bias")
    arrays["time_embed.0.bias"] = np.zeros(3, np.float32)
    expected = {name: value.shape for name, value in weights.items()}
    with pytest.raises(UserError) as error:
        checkpoints.check_state(expected, arrays, "some.safetensors")
    for text in (
        "some.safetensors",
        "1 missing: out.2.bias",
        "1 unexpected: extra.weight",
        "1 of another shape: time_embed.0.bias (3,) instead of (128,)",
    ):
        assert text in str(error.value)


def test_a_failed_save_leaves_nothing_behind(tmp_path, saved, weights, monkeypatch):
    def fail(arrays, path, metadata):
        if path.name.startswith("ema"):
            raise OSError(28, "No space left on device")
        save_file(arrays, path, metadata=metadata)

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(UserError, match="No space left"):
        checkpoints.save(tmp_path, 800, CONFIG, {"model": weights, "ema_0.9999": weights})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last", "step_000700"]
    assert checkpoints.find(tmp_path).parent == saved

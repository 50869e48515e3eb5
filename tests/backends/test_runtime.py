"""The runtime of both backends: conversion, precision, state and start."""

import subprocess
import sys

import numpy as np
import pytest
from support.backends import BACKENDS, ROOT, Backend
from support.small import NETWORK, NETWORK_V1, RandomDataset, small_config

from guided_diffusion_core import checkpoints
from guided_diffusion_core.backends import BACKENDS as KNOWN
from guided_diffusion_core.config import resolve
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system import devices

needs_jittor = pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor is not among MEDSEGDIFF_BACKENDS")


needs_pytorch = pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")


@pytest.fixture
def runtime(backend):
    return backend.module("runtime")


@pytest.fixture
def layer(backend):
    """Build a batch normalisation of 3 channels, with parameters, buffers and a counter."""
    return backend.module("nn").BatchNorm2d(3)


def has_gradient(backend, tensor):
    """Return whether a backward pass would reach the tensor."""
    return tensor.requires_grad if backend.name == "pytorch" else not tensor.is_stop_grad()


def new_state(layer, runtime, dtype=np.float64):
    """Return other values than those of the layer, by the same names; the counter is 5."""
    draw = np.random.default_rng(0)
    return {
        name: np.asarray(5) if value.shape == () else draw.standard_normal(value.shape).astype(dtype)
        for name, value in runtime.state_arrays(layer).items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool"])
def test_arrays_survive_the_round_trip(runtime, dtype):
    array = (np.arange(24).reshape(2, 3, 4) % 3 - 0.25).astype(dtype)[:, ::-1]
    back = runtime.to_numpy(runtime.to_tensor(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_float64_is_not_rounded_on_the_way(runtime):
    array = np.array([1 + 2.0**-50])
    assert runtime.to_numpy(runtime.to_tensor(array))[0] == array[0]


def test_dtype_can_be_chosen(runtime):
    assert runtime.to_numpy(runtime.to_tensor([1, 2], dtype="float32")).dtype == np.float32


def test_tensors_do_not_share_the_arrays_memory(runtime):
    array = np.zeros(3, np.float32)
    tensor = runtime.to_tensor(array)
    array[:] = 1
    values = runtime.to_numpy(tensor)
    values[:] = 2
    np.testing.assert_array_equal(runtime.to_numpy(tensor), np.zeros(3))


def test_computation_in_float64(runtime, float64):
    tensor = runtime.to_tensor(np.array([1 + 2.0**-40]))
    assert runtime.precision() == "float64"
    assert runtime.to_numpy(tensor * tensor - tensor)[0] == pytest.approx(2.0**-40, rel=1e-9)


def test_float32_is_the_precision_at_the_start(runtime):
    assert runtime.precision() == "float32"


def test_nothing_is_recorded_under_no_grad(backend, runtime, layer):
    x = runtime.to_tensor(np.ones((2, 3, 4, 4), np.float32))
    with runtime.no_grad():
        frozen = layer(x)
    recorded = layer(x)
    assert has_gradient(backend, recorded) and not has_gradient(backend, frozen)


def test_state_has_the_originals_names_and_shapes(runtime, layer):
    state = runtime.state_arrays(layer)
    assert {name: (value.shape, str(value.dtype)) for name, value in state.items()} == {
        "weight": ((3,), "float32"),
        "bias": ((3,), "float32"),
        "running_mean": ((3,), "float32"),
        "running_var": ((3,), "float32"),
        "num_batches_tracked": ((), "int64"),
    }


def test_loaded_state_is_the_given_one(runtime, layer):
    given = new_state(layer, runtime)
    runtime.load_state(layer, given)
    state = runtime.state_arrays(layer)
    for name, value in given.items():
        assert state[name].dtype == (np.int64 if value.shape == () else np.float32)
        np.testing.assert_array_equal(state[name], value.astype(state[name].dtype))


def test_loading_leaves_what_is_trained_as_it_was(backend, runtime, layer):
    runtime.load_state(layer, new_state(layer, runtime))
    assert has_gradient(backend, layer.weight) and has_gradient(backend, layer.bias)
    assert not has_gradient(backend, layer.running_mean)


def test_state_is_loaded_in_the_set_precision(runtime, float64, backend):
    layer = backend.module("nn").BatchNorm2d(3)
    given = new_state(layer, runtime)
    runtime.load_state(layer, given)
    state = runtime.state_arrays(layer)
    assert state["weight"].dtype == np.float64 and state["weight"][0] == given["weight"][0]


def test_wrong_state_is_refused_and_changes_nothing(runtime, layer):
    before = runtime.state_arrays(layer)
    given = new_state(layer, runtime)
    given["extra"] = np.zeros(1)
    given["weight"] = np.zeros(4)
    del given["bias"]
    with pytest.raises(UserError) as error:
        runtime.load_state(layer, given, where="model.safetensors")
    assert all(word in str(error.value) for word in ("model.safetensors", "extra", "weight", "bias"))
    for name, value in runtime.state_arrays(layer).items():
        np.testing.assert_array_equal(value, before[name])


def test_versions_name_the_framework(runtime, backend):
    assert set(runtime.versions()) == {"python", "numpy", KNOWN[backend.name].framework}


# ---- Start ----


def python(code):
    """Run code in a fresh process and return the last line that it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_further_start_changes_the_settings_alone(backend, runtime):
    runtime.start(threads=1)
    weights = backend.module("nn").BatchNorm2d(3)
    runtime.start(precision="float64")
    assert runtime.started() and runtime.precision() == "float64"
    runtime.start()
    assert runtime.precision() == "float32"
    assert set(runtime.state_arrays(weights)) >= {"weight", "bias"}


# ---- Devices; the rules by which one is chosen are tested in tests/system/test_devices.py ----


@pytest.mark.parametrize("device", ["cuda:99", "cuda:1000"])
def test_a_device_that_is_not_there_is_refused_and_changes_nothing(runtime, device):
    runtime.start(precision="float64")
    with pytest.raises(UserError, match=f"--device {device}: found no such device.* finds here: cpu"):
        runtime.start(device=device)
    assert (runtime.device(), runtime.precision()) == ("cpu", "float64")
    runtime.start()


def test_the_cpu_is_found_and_works(runtime):
    assert runtime.find_devices().devices()[0].name == "cpu"
    assert runtime.try_device("cpu") == ""
    runtime.start(device="auto")
    assert runtime.device() in [device.name for device in runtime.find_devices().devices()]
    runtime.start()
    assert runtime.device() == "cpu"


@pytest.fixture
def meta():
    """Let PyTorch's tensors and networks be made on the device `meta`, which has shapes and no numbers."""
    if "pytorch" not in BACKENDS:
        pytest.skip("PyTorch is not among MEDSEGDIFF_BACKENDS")
    runtime = Backend("pytorch").module("runtime")
    runtime.set_device(devices.Device("meta"))
    yield runtime
    runtime.set_device(devices.Device())


@pytest.mark.parametrize("network", [NETWORK, NETWORK_V1, {**NETWORK, "learn_sigma": False}])
def test_tensors_and_networks_are_made_on_the_current_device(meta, network):
    """Require it of weights, buffers, the network's constants, and what comes from numpy."""
    model, _ = Backend("pytorch").module("build").build(resolve(network))
    model.eval()
    assert {str(value.device) for value in model.state_dict().values()} == {"meta"}
    x = meta.to_tensor(np.zeros((2, 4, 32, 32), np.float32))
    with meta.no_grad():
        out, cal = model(x, meta.to_tensor([3, 5]))
    assert out.device.type == cal.device.type == "meta" and out.shape[-1] == 32
    per_case = Backend("pytorch").module("nn").per_case(np.ones(2), x)
    noise = Backend("pytorch").module("process").normal_like(x)
    assert per_case.device.type == noise.device.type == "meta"


def test_the_kernels_of_the_cpu_serve_no_other_device(meta):
    """Give each of them what it serves on the CPU, but for the device."""
    import torch

    kernels = [Backend("pytorch").module(f"kernels.{name}") for name in ("winograd", "group_norm")]
    served = []
    for name in ("cpu", "meta"):
        x = torch.empty((1, 128, 128, 128), device=name).contiguous(memory_format=torch.channels_last)
        served.append((kernels[0].serves(x, 128), kernels[1].serves(x)))
    assert served == [(True, True), (False, False)]


@needs_pytorch
def test_float64_is_refused_on_apples_gpu():
    runtime = Backend("pytorch").module("runtime")
    runtime.current.device = devices.Device("mps")
    try:
        with pytest.raises(UserError, match="--device mps: found a computation in float64"):
            runtime.set_precision("float64")
    finally:
        runtime.start()


@needs_jittor
@pytest.mark.parametrize("imports", ["import guided_diffusion_jt", "from guided_diffusion_jt import runtime"])
def test_import_loads_no_jittor(imports):
    watched = "{name for name in sys.modules if name.startswith('jittor')}"
    environment = "os.environ == before"
    code = f"import os, sys; before = dict(os.environ); {imports}; print({watched}, {environment})"
    assert python(code) == "set() True"


@needs_jittor
@pytest.mark.parametrize("module", ["unet", "nn", "optim", "train_util", "kernels.winograd"])
def test_a_module_that_is_imported_first_starts_jittor(module):
    code = f"import guided_diffusion_jt.{module}; from guided_diffusion_jt import runtime; print(runtime.started())"
    assert python(code) == "True"


@needs_jittor
def test_a_jittor_of_the_programs_own_is_taken_as_it_is():
    code = (
        "import os, sys, types; own = sys.modules['jittor'] = types.ModuleType('jittor'); before = dict(os.environ)\n"
        "from guided_diffusion_jt.runtime import jt; print(jt is own, before == os.environ)"
    )
    assert python(code) == "True True"


@needs_pytorch
def test_import_leaves_the_allocator_as_it_is():
    """Require that the first module which needs the backend sets it."""
    code = (
        "from unittest import mock; from guided_diffusion_pt import runtime, unet\n"
        "from guided_diffusion_core.backends import backend_module\n"
        "with mock.patch.object(runtime, '_keep_freed_memory') as keep:\n"
        "    calls = [keep.call_count]\n"
        "    for name in ('unet', 'nn'):\n"
        "        backend_module('pytorch', name); calls.append(keep.call_count)\n"
        "print(calls)"
    )
    assert python(code) == "[0, 1, 1]"


@needs_pytorch
@pytest.mark.parametrize("network", [NETWORK, NETWORK_V1])
def test_a_checkpoint_has_the_same_bits_from_every_device(monkeypatch, tmp_path, network):
    """Let a training begin on the CPU and go on with the kernels in the order in memory of an NVIDIA GPU."""
    config = small_config(**network, ema_rate="0.9,0.99")
    train_util = Backend("pytorch").module("train_util")
    loop = train_util.create_train_loop(config, RandomDataset())
    [_] = loop.run_loop(1)
    here = loop.networks()
    monkeypatch.setattr(Backend("pytorch").module("nn"), "_reads_channels_last", lambda tensor: True)
    there = train_util.create_train_loop(config, RandomDataset(), 1, here)
    assert not there.model.input_blocks[0][0].weight.is_contiguous()
    _, _, found = checkpoints.load_all(checkpoints.save(tmp_path, 1, config, there.networks()))
    assert sorted(found) == sorted(here) and len(found) == 4  # weights, two averages, the optimizer
    for kind, arrays in here.items():
        assert {name: value.tobytes() for name, value in found[kind].items()} == {
            name: value.tobytes() for name, value in arrays.items()
        }

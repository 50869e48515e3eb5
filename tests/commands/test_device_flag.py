"""A device that is not there ends each command with exit code 2, one message and nothing read, written or computed."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support.backends import BACKENDS, ROOT, Backend
from support.small import small_config

from guided_diffusion_core import checkpoints
from guided_diffusion_core.data.formats.transforms import RGB_RULE
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.registry import initial_state
from guided_diffusion_core.system.devices import Device
from medsegdiff import load, train

MISSING = "cuda:99"
REFUSED = f"--device {MISSING}: found no such device"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return the folder of a training that ran on a device which is not here."""
    config = small_config(device="cuda:77", data_name="IMAGES", normalisation=RGB_RULE)
    folder = tmp_path_factory.mktemp("run")
    checkpoints.save(folder, 1, config, {"model": initial_state(config.model, 0)})
    return folder


def message(done):
    """Return the last line on stderr of a command that has ended with exit code 2 and without a traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def run(*arguments):
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)


@pytest.mark.parametrize("flag", [("--device", MISSING), ("--gpu_dev", "99")])
def test_training_and_sampling_refuse_before_they_look_at_the_data(backend, command, checkpoint, tmp_path, flag):
    common = ("--backend", backend.name, *flag, "--data_dir", tmp_path / "nowhere")
    for script, own in (("segmentation_train", ()), ("segmentation_sample", ("--model_path", checkpoint))):
        code, out, err = command(script, *common, *own, "--out_dir", tmp_path / "out")
        assert (code, out) == (2, "") and REFUSED in err and "nowhere" not in err
    assert not (tmp_path / "out").exists()


def test_the_python_interface_refuses_alike(backend, checkpoint, tmp_path):
    with pytest.raises(UserError, match=REFUSED):
        load(checkpoint, backend=backend.name, device=MISSING)
    with pytest.raises(UserError, match=REFUSED):
        train(tmp_path / "nowhere", tmp_path / "out", backend=backend.name, device=MISSING)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_machines_device_loads(backend, checkpoint):
    """Only the flag counts, not what the training ran on; a model stays on its device."""
    runtime = backend.module("runtime")
    model = load(checkpoint, backend=backend.name, device="cpu")
    assert (model.device, runtime.device()) == ("cpu", "cpu")
    assert model.config.compute.device == "cuda:77"


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="the device `meta` is PyTorch's")
def test_a_model_stays_on_its_device(checkpoint):
    """Let another model of the process be on a device that has no numbers."""
    runtime = Backend("pytorch").module("runtime")
    model = load(checkpoint, backend="pytorch", device="cpu")
    image = np.full((40, 32, 3), 9, np.uint8)
    expected = model.segment(image, num_ensemble=1, sample_steps=1)
    runtime.set_device(Device("meta"))
    try:
        found = model.segment(image, num_ensemble=1, sample_steps=1)
    finally:
        runtime.start()
    np.testing.assert_array_equal(found.probability, expected.probability)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parity_and_benchmarks_refuse(backend, tmp_path):
    parity = ("parity", "run", "weights/new", "--backends", backend, "--out_dir", tmp_path / "parity")
    assert REFUSED in message(run(*parity, "--device", MISSING))
    benchmarks = ("benchmarks", "run", "--sizes", 32, "--width", 32, "--backends", backend)
    found = run(*benchmarks, "--what", "evaluation", "--device", MISSING, "--out_dir", tmp_path / "benchmarks")
    assert REFUSED in message(found)
    assert "--device: found auto" in message(run(*benchmarks, "--device", "auto", "--out_dir", tmp_path / "auto"))


@pytest.mark.skipif(len(BACKENDS) < 2, reason="--verify needs both backends")
def test_a_conversion_that_cannot_be_verified_writes_nothing(checkpoint, tmp_path):
    source = checkpoints.find(str(checkpoint))
    found = run("medsegdiff", "convert", source, tmp_path / "out.pt", "--verify", "--device", MISSING)
    assert REFUSED in message(found)
    assert not (tmp_path / "out.pt").exists()


def test_the_demo_refuses(tmp_path):
    found = run("medsegdiff", "demo", "--out_dir", tmp_path / "demo", "--device", MISSING)
    assert found.returncode == 2 and REFUSED in found.stderr


def test_a_name_of_no_device_is_refused_without_a_framework(checkpoint, tmp_path):
    for script, own in (("train", ()), ("sample", ("--model_path", checkpoint))):
        found = run("medsegdiff", script, *own, "--device", "gpu", "--dry_run", "--data_dir", tmp_path)
        assert "--device: found 'gpu'; expected auto, cpu, cuda, cuda:N or mps" in message(found)

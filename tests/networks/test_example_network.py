"""Adding a network is one folder and nothing else: `support/networks/example`, brought by another distribution.

It is trained, sampled, converted and compared by the public commands, in processes that know it by its entry point.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.backends import BACKENDS, ROOT
from support.parity_runs import parity, result_of

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.ours import Ours
from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import from_dict, resolve
from guided_diffusion_core.data.phantoms import write_isic_phantoms
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks import registry

FOLDER = ROOT / "tests" / "support" / "networks"
FLAGS = ("--network", "example", "--image_size", "16", "--example.width", "8")
TRAINING = ("--max_steps", "2", "--batch_size", "2", "--predict_xstart", "True", "--ema_rate", "0.5")
both = pytest.mark.skipif(len(BACKENDS) < 2, reason="two backends are compared")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Make a folder like `site-packages`, with a distribution whose entry point names the example."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(FOLDER, site / "lab_networks", ignore=shutil.ignore_patterns("__pycache__"))
    metadata = site / "lab_networks-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-networks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[medsegdiff.networks]\nlab = lab_networks\n")
    return site


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Write four phantoms for training and two for tests; returns the two folders."""
    return write_isic_phantoms(tmp_path_factory.mktemp("isic"), 4, 2, 24, seed=1)


@pytest.fixture(scope="module", params=BACKENDS)
def trained(request, installed, phantoms, tmp_path_factory):
    """Train two steps with each backend; returns (backend, folder of the run)."""
    out_dir = tmp_path_factory.mktemp("run")
    flags = ("--backend", request.param, "--data_name", "ISIC", "--data_dir", phantoms[0], "--out_dir", out_dir)
    medsegdiff(installed, "train", *flags, *FLAGS, *TRAINING)
    return request.param, out_dir


def medsegdiff(site, *args, code=0):
    """Run a command in a process that finds the distributions in `site`; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    done = subprocess.run(
        [sys.executable, "-m", "medsegdiff", *map(str, args)], cwd=ROOT, env=environment, text=True, capture_output=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_flags_are_shown_and_belong_to_their_network(installed):
    shown = " ".join(medsegdiff(installed, "train", "--help").split())
    assert "--network {example,medsegdiff_new,medsegdiff_v1,paper}" in shown
    assert "--example.width INT channels of the first features, a multiple of 4 (at least 4; default: 16)" in shown
    refused = medsegdiff(installed, "train", "--example.width", "8", "--dry_run", code=2)
    assert "--example.width: found given with the network medsegdiff_new" in refused
    refused = medsegdiff(installed, "train", *FLAGS, "--num_channels", "8", "--dry_run", code=2)
    assert "--num_channels: found given with the network example" in refused


def test_training_sampling_and_resuming(trained, installed, phantoms, tmp_path, example):
    backend, run = trained
    written = json.loads((run / "config.json").read_text())
    assert written["network"] == "example" and written["model"]["width"] == 8
    config, average = checkpoints.load(checkpoints.find(run))
    assert config.network == "example" and config.model.in_ch == 4
    assert {name: value.shape for name, value in average.items()} == registry.state_shapes(config.model)
    trained_weights = checkpoints.load_all(run / "checkpoints" / "step_000002")[2]["model"]
    start = registry.initial_state(config.model, config.seed)
    assert not np.array_equal(trained_weights["out.weight"], start["out.weight"])
    log = (run / "log.csv").read_text().splitlines() if (run / "log.csv").exists() else []
    assert not any("loss_cal" in line for line in log)

    common = ("--backend", backend, "--data_name", "ISIC")
    sampling = ("--sampler", "ddim", "--sample_steps", "2", "--num_ensemble", "2", "--out_dir", tmp_path / "masks")
    medsegdiff(installed, "sample", *common, "--data_dir", phantoms[1], "--model_path", run, *sampling)
    assert len(list((tmp_path / "masks").rglob("*.png"))) >= 2
    resumed = ("--out_dir", run, "--resume", "last", "--max_steps", 3)
    medsegdiff(installed, "train", *common, "--data_dir", phantoms[0], *resumed)
    assert (run / "checkpoints" / "step_000003").is_dir()


@both
def test_conversion_keeps_every_bit_and_both_backends_agree(installed, tmp_path, example):
    settings = {"network": "example", "image_size": 16, "in_ch": 4, "example.width": 8, "normalisation": "none"}
    config = resolve(settings)
    state = registry.initial_state(config.model, 3)
    generator = np.random.default_rng(0)
    state["out.weight"] = generator.standard_normal(state["out.weight"].shape).astype(np.float32)
    source = checkpoints.save(tmp_path / "run", 1, config, {"model": state}) / "model.safetensors"
    target = tmp_path / "network.pkl"
    printed = medsegdiff(installed, "convert", source, target, "--verify", *FLAGS, "--in_ch", "4")
    assert "--network example" in printed and "--example.width 8" in printed
    assert "30 of 30 tensors are bitwise the same" in printed
    refused = medsegdiff(installed, "convert", target, tmp_path / "x.safetensors", code=2)
    assert "name the network with --network" in refused
    hidden = (*FLAGS, "--in_ch", "4", "--normalisation", "none")
    medsegdiff(installed, "convert", target, tmp_path / "x.safetensors", *hidden)
    loaded, arrays = checkpoints.load(tmp_path / "x.safetensors")
    assert loaded.model == config.model
    assert all(np.array_equal(arrays[name], value) for name, value in state.items())


@both
def test_both_backends_compute_the_same(tmp_path):
    cases = ("forward", "gradients", "steps", "sampling")
    names = [f"{case}/example" for case in cases]
    suite = ("--suite", "support.example_suite", "--layers", "--out_dir", tmp_path / "run")
    done = parity("run", *names, *suite, modules=[ROOT / "tests"])
    assert done.returncode == 0, done.stdout + done.stderr
    sites = {row["site"] for verdict in result_of(tmp_path / "run")["verdicts"] for row in verdict["rows"]}
    assert {"blocks.1.norm#0", "attention.qkv#0", "out#0"} <= sites  # every module of the shared source is seen


def test_settings_that_make_no_network_are_refused(example):
    for settings, text in (
        ({"example.width": 6}, "--network example: found 6 channels in 4 groups"),
        ({"image_size": 15}, "--network example: found shapes .* do not fit"),
        ({"in_ch": 1}, "--in_ch"),
    ):
        model = resolve({"network": "example", **settings}).model
        with pytest.raises(UserError, match=text):
            registry.make_plan(model)
    with pytest.raises(UserError, match="--example.width: found 2; expected a number of at least 4"):
        resolve({"network": "example", "example.width": 2})


def test_the_configuration_survives_json(example):
    config = resolve({"network": "example", "example.width": 8, "mask_channels": 2, "in_ch": 5})
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.replace(seed=3).model == config.model
    other = resolve({"network": "medsegdiff_v1"}, base=config)
    assert other.model.version == "1" and other.model.mask_channels == 2 and other.network == "medsegdiff_v1"


def test_operations_are_counted_from_the_source(example):
    model = resolve({"network": "example", "example.width": 8, "in_ch": 4, "image_size": 16}).model
    # convolutions of 3x3: image, mask, down, two blocks, out; then attention and the linear layers
    convolutions = 9 * (3 * 8 * 256 + 8 * 256 + 64 * 64 + 2 * 64 * 64 + 16 * 256)
    attention = 64 * (8 * 24 + 64) + 2 * 64 * 64 * 8
    embedding = 4 * 64
    assert example.operations(model) == 2 * (convolutions + attention + embedding)
    assert example.smallest_batch(model) == 1


def test_the_benchmark_measures_any_network(backend, example):
    measured = Ours(backend.name, 1)
    case = Case("training", "example", 16, 2, 8)
    assert cases.network(case).width == 8
    measured.prepare(case)
    assert measured.check()["time.0.weight"].shape == (8, 8)
    before = backend.module("runtime").state_arrays(measured.model)["out.weight"]
    measured.repeat()
    assert not np.array_equal(backend.module("runtime").state_arrays(measured.model)["out.weight"], before)
    measured.prepare(Case("step", "example", 16, 2, 8))
    assert measured.check()["out"].shape == (2, 2, 16, 16)


FAMILY_OF_IMAGES = """
from guided_diffusion_core.networks.family import NetworkConfig, image_inputs
from guided_diffusion_core.networks.shared import shared_family

FAMILY = shared_family("of_images", NetworkConfig, inputs=image_inputs)
"""
NETWORK_OF_IMAGES = """
from .. import nn


class Network(nn.Network):
    def __init__(self, plan):
        super().__init__()
        self.norm = nn.BatchNorm2d(plan.image_channels)
        self.layer = nn.Conv2d(plan.image_channels, plan.out_channels, 1)

    def forward(self, x):
        return self.layer(nn.mean(self.norm(nn.MaxPool2d(8)(x)), (2, 3)) + self.norm(x))
"""


def test_a_network_may_see_the_image_alone(backend, tmp_path, monkeypatch):
    monkeypatch.setattr(registry.networks, "__path__", list(registry.networks.__path__))
    (tmp_path / "of_images").mkdir()
    (tmp_path / "of_images" / "__init__.py").write_text("")
    (tmp_path / "of_images" / "family.py").write_text(FAMILY_OF_IMAGES)
    (tmp_path / "of_images" / "network.py").write_text(NETWORK_OF_IMAGES)
    registry.add_folder(tmp_path)
    model = resolve({"network": "of_images", "image_size": 8, "in_ch": 4}).model
    assert registry.smallest_batch(model) == 2  # one pixel is left for a norm over the batch
    assert registry.smallest_batch(resolve({"network": "of_images", "image_size": 16, "in_ch": 4}).model) == 1
    state = registry.initial_state(model, 0)
    network = backend.module("build").build_network(model, state)
    network.eval()
    runtime = backend.module("runtime")
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    found = runtime.to_numpy(network(runtime.to_tensor(x)))
    expected = np.einsum("nchw,oc->nohw", x + x.max((2, 3), keepdims=True), state["layer.weight"][:, :, 0, 0])
    scale = 1 / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(found, expected * scale + state["layer.bias"].reshape(1, -1, 1, 1), atol=1e-5)


def test_no_file_outside_the_folder_knows_the_network():
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    knowing = [name for name in files.split() if "ExampleConfig" in (ROOT / name).read_text()]
    assert [Path(name).parent.name for name in knowing if "test_" not in name] == ["example"]

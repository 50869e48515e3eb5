"""Test layers in 16 bits: PyTorch's autocast, the loss scale of float16, and Jittor's refusal."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support.backends import BACKENDS, ROOT, Backend
from support.small import NETWORK, NETWORK_V1, RandomDataset, random_state, small_config

from guided_diffusion_core import checkpoints, config, sampling
from guided_diffusion_core.data.phantoms import write_isic_phantoms
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.medsegdiff.plan import make_plan
from guided_diffusion_core.networks.medsegdiff.state_shapes import state_shapes
from guided_diffusion_core.training.loss_scale import GROWTH_STEPS, LossScale

EPS = {"bf16": 2.0**-8, "fp16": 2.0**-11}  # of one rounding
TOO_LARGE = 2.0**20  # a loss scale with which the first step's gradients are infinite
# The least network that there is, since a CPU without instructions for 16 bits is slow in them.
LEAST = {
    **NETWORK,
    "version": "1",
    "channel_mult": "1,1",
    "batch_size": 2,
    "microbatch": 1,
    "lr": 1e-2,
    "predict_xstart": True,
    "ema_rate": "0.5",
}
halves = pytest.mark.parametrize("mixed_precision", list(EPS))
with_pytorch = pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
PYTORCH = Backend("pytorch")


@pytest.fixture(autouse=True)
def full_precision_again():
    yield
    for name in BACKENDS:
        Backend(name).module("runtime").set_mixed_precision("no")


def create(mixed_precision, step=0, networks=None, **settings):
    """Build a training loop of the smallest network."""
    configuration = small_config(**{**LEAST, **settings}, mixed_precision=mixed_precision)
    return PYTORCH.module("train_util").create_train_loop(configuration, RandomDataset(2), step, networks)


def run(loop, steps):
    return [values for _, values in loop.run_loop(steps)]


@with_pytorch
@halves
@pytest.mark.parametrize("network", [NETWORK, NETWORK_V1], ids=["new", "1"])
def test_forward(mixed_precision, network):
    """Compare with float32: the outputs are float32, near those of float32 and different from them.

    The root mean square of the difference was measured as 0.9 to 3.2 roundings; the bound has room for other
    processors.
    """
    import torch

    plan = make_plan(small_config(**network).model)
    runtime = PYTORCH.module("runtime")
    model = PYTORCH.module("unet").make_network(plan)
    runtime.load_state(model, random_state(state_shapes(plan)))
    model.eval()
    x = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    results = {}
    for name in ("no", mixed_precision):
        runtime.set_mixed_precision(name)
        with torch.no_grad():
            results[name] = model(x, torch.tensor([3, 700]))
    for exact, rounded in zip(*results.values()):
        assert rounded.dtype == exact.dtype == torch.float32
        assert float((rounded - exact).norm() / exact.norm()) < 12 * EPS[mixed_precision]
    out = results[mixed_precision][0]
    exact = results["no"][0]
    assert float((out - exact).norm() / exact.norm()) > 0.3 * EPS[mixed_precision]


@with_pytorch
@halves
def test_what_stays_in_float32(mixed_precision):
    """Require float32 in norms and softmax, which round only their result, and in parameters, gradients, averages and
    moments."""
    import torch

    nn = PYTORCH.module("nn")
    runtime = PYTORCH.module("runtime")
    loop = create(mixed_precision, use_checkpoint=True)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]
    x = (100 + torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(1))).to(half)
    for layer in (nn.GroupNorm32(32, 32), nn.BatchNorm2d(32), nn.softmax):
        with runtime.autocast(x):
            found = layer(x)
        assert found.dtype == half and torch.equal(found, layer(x.float()).to(half))
    run(loop, 1)
    image, mask = next(iter(loop.data))
    _, gradients = loop.forward_backward(torch.cat([image, mask], dim=1))
    tensors = [*loop.params, *loop.model.buffers(), *gradients, *loop.ema_params[0], *loop.opt.moments()[0]]
    assert {tensor.dtype for tensor in tensors} == {torch.float32, torch.int64}  # int64: num_batches_tracked


@with_pytorch
def test_checkpointing_repeats_the_types():
    """Require the same gradients to the bit, since recomputed activations are rounded as the first ones."""
    import torch

    def gradients(flag):
        loop = create("bf16", use_checkpoint=flag)
        image, mask = next(iter(loop.data))
        return loop.forward_backward(torch.cat([image, mask], dim=1))

    values, kept = gradients(False)
    again, repeated = gradients(True)
    assert values == again and all(map(torch.equal, kept, repeated))


@with_pytorch
@halves
def test_training(mixed_precision, tmp_path):
    """Require that the loss falls, and that a resumed run equals an uninterrupted one to the bit.

    In fp16, the loss scale is too large at first, so that some steps before the checkpoint are skipped.
    """
    whole = create(mixed_precision)
    values = []
    if mixed_precision == "fp16":
        whole.loss_scale.factor = TOO_LARGE
    for step, found in whole.run_loop(8):
        values.append(found)
        if step == 2:
            folder = checkpoints.save(tmp_path, 3, small_config(**LEAST), whole.networks())
    if mixed_precision == "fp16":
        assert 1 <= whole.loss_scale.skipped < 5
        assert whole.opt._adamw.state[whole.params[0]]["step"] == 8 - whole.loss_scale.skipped
    resumed = create(mixed_precision, 3, checkpoints.load_all(folder)[2])
    assert run(resumed, 8) == values[3:]
    expected = whole.networks()
    found = resumed.networks()
    assert found.keys() == expected.keys()
    for kind, arrays in expected.items():
        assert {name: value.tobytes() for name, value in found[kind].items()} == {
            name: value.tobytes() for name, value in arrays.items()
        }
    assert np.mean([value["total"] for value in values[-2:]]) < 0.94 * values[0]["total"]


@with_pytorch
def test_a_step_whose_gradients_overflow_changes_nothing():
    loop = create("fp16")
    before = loop.networks()
    loop.loss_scale.factor = TOO_LARGE
    run(loop, 1)
    after = loop.networks()
    assert loop.step == 1 and loop.loss_scale.state().items() >= {"skipped": 1}.items()
    for name in loop.names:
        for kind in ("model", "ema_0.5"):
            np.testing.assert_array_equal(after[kind][name], before[kind][name])
        assert not after["trainer"][f"first_moment/{name}"].any()


def test_loss_scale():
    scale = LossScale()
    assert not scale.update(False) and scale.factor == 2.0**15
    for _ in range(GROWTH_STEPS - 1):
        assert scale.update(True)
    assert scale.factor == 2.0**15
    other = LossScale()
    other.restore(scale.state())
    assert (
        other.update(True)
        and other.factor == 2.0**16
        and vars(other) == {"factor": 2.0**16, "good_steps": 0, "skipped": 1}
    )
    for _ in range(16):
        other.update(False)
    assert other.factor == 1
    with pytest.raises(UserError, match="gradients leave the range of float16.*Use --mixed_precision bf16"):
        other.update(False)


def test_sampling_is_in_float32_unless_the_command_line_says_otherwise(tmp_path):
    folder = checkpoints.save(
        tmp_path, 1, small_config(mixed_precision="bf16"), {"model": {"a": np.ones(2, np.float32)}}
    )
    path = checkpoints.find(folder)
    assert checkpoints.read_config(path).compute.mixed_precision == "bf16"
    assert sampling.sampling_config(path, {}).compute.mixed_precision == "no"
    assert sampling.sampling_config(path, {"mixed_precision": "fp16"}).compute.mixed_precision == "fp16"


def test_checkpoints_from_before_are_in_float32():
    tree = small_config().to_dict()
    del tree["compute"]
    assert config.from_dict(tree) == small_config()


@pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor is not among MEDSEGDIFF_BACKENDS")
@halves
def test_jittor_refuses_before_it_writes(mixed_precision, tmp_path):
    write_isic_phantoms(tmp_path / "data", train=2, test=0, size=40, seed=1)
    done = subprocess.run(
        [
            sys.executable,
            "scripts/segmentation_train.py",
            "--backend",
            "jittor",
            "--data_name",
            "ISIC",
            "--data_dir",
            tmp_path / "data",
            "--out_dir",
            tmp_path / "run",
            "--image_size",
            "32",
            "--batch_size",
            "2",
            "--channel_mult",
            "1,2",
            "--attention_resolutions",
            "16",
            "--mixed_precision",
            mixed_precision,
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"--mixed_precision: found {mixed_precision} with --backend jittor; expected no" in done.stderr
    assert not (tmp_path / "run").exists()

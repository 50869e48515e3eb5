"""A compiled network (`--compile`) computes what the network computes, as one graph. TF32 is a choice (`--tf32`)."""

from unittest import mock

import numpy as np
import pytest
from support.backends import BACKENDS, Backend
from support.small import FAMILIES, NETWORK, RandomDataset, computing

from guided_diffusion_core.config import SamplingConfig, resolve
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.noise import NoiseTape

if "pytorch" not in BACKENDS:
    pytest.skip("PyTorch is not among MEDSEGDIFF_BACKENDS", allow_module_level=True)

import torch

PYTORCH = Backend("pytorch")
pytestmark = pytest.mark.usefixtures("example")


@pytest.fixture
def graphs():
    """Let networks be compiled to graphs that PyTorch runs as they are, and yield the list of the graphs.

    The whole compiler takes minutes.
    """
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    compile = torch.nn.Module.compile
    torch._dynamo.reset()
    with (
        computing("float32", PYTORCH),
        mock.patch.object(torch.nn.Module, "compile", lambda self, **given: compile(self, backend=backend, **given)),
    ):
        yield found
    PYTORCH.module("runtime").set_compile(False)
    PYTORCH.module("runtime").set_mixed_precision("no")


def train(family, **settings):
    config = resolve({**FAMILIES[family], "batch_size": 2, "max_steps": 3, "lr": 1e-3, **settings})
    loop = PYTORCH.module("train_util").create_train_loop(config, RandomDataset())
    return [dict(values) for _, values in loop.run_loop(3)], loop.networks()


@pytest.mark.parametrize("family, mixed_precision", [("medsegdiff_new", "no"), ("example", "bf16")])
def test_training(graphs, family, mixed_precision):
    """Compare three steps, with other dropout masks in each: one graph serves all, without a break in it."""
    plain, state = train(family, mixed_precision=mixed_precision)
    assert not graphs
    compiled, compiled_state = train(family, mixed_precision=mixed_precision, compile=True)
    assert len(graphs) == 1
    for expected, found in zip(plain, compiled):
        assert found == pytest.approx(expected, rel=1e-5)
    assert len({values["total"] for values in compiled}) == 3
    for kind, arrays in state.items():
        assert list(compiled_state[kind]) == list(arrays)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling(graphs, family):
    config = resolve(FAMILIES[family])
    masks = []
    for compiled in (False, True):
        PYTORCH.module("runtime").set_compile(compiled)
        model, process = PYTORCH.module("build").build(config)
        model.eval()
        sampling = SamplingConfig(sample_steps=3, num_ensemble=2)
        sample = PYTORCH.module("sample_util").EnsembleSampler(model, process, sampling, NoiseTape(0))
        masks.append(sample(RandomDataset().images[:2], ["a", "b"]))
    assert len(graphs) == 1
    np.testing.assert_allclose(*masks, rtol=0, atol=1e-5)


def test_a_compiled_network_leaves_the_kernels_for_a_cpu_out(graphs):
    settings = {"image_size": 128, "num_channels": 128, "channel_mult": "1,1,1", "attention_resolutions": "32"}
    runtime = PYTORCH.module("runtime")
    runtime.set_compile(True)
    model, _ = PYTORCH.module("build").build(resolve({**NETWORK, **settings}))
    model.eval()
    with (
        mock.patch("guided_diffusion_pt.kernels.winograd._convolve", side_effect=AssertionError),
        mock.patch("guided_diffusion_pt.kernels.group_norm._statistics", side_effect=AssertionError),
        runtime.no_grad(),
    ):
        model(torch.zeros(1, 4, 128, 128), torch.tensor([3]))
    assert len(graphs) == 1


def test_a_compiled_network_does_not_recompute():
    with pytest.raises(UserError, match="--compile: found True with --use_checkpoint True; expected one of the two"):
        resolve({"compile": True, "use_checkpoint": True})


@pytest.mark.parametrize("compiler", [None, "a-compiler-that-is-not-there"])
def test_a_missing_compiler_is_named_at_once(monkeypatch, compiler):
    monkeypatch.setenv("PATH", "")
    if compiler:
        monkeypatch.setenv("CXX", compiler)
    runtime = PYTORCH.module("runtime")
    with pytest.raises(UserError, match="--compile: found no C.. compiler; expected one"):
        runtime.set_compile(True)
    runtime.set_compile(False)
    assert not runtime.current.compile


def test_tf32_is_off_unless_it_is_asked_for():
    runtime = PYTORCH.module("runtime")
    for settings, expected in (({"tf32": True}, True), ({}, False)):
        runtime.start(device="cpu", **settings)
        assert torch.backends.cuda.matmul.allow_tf32 is expected
        assert torch.backends.cudnn.allow_tf32 is expected


@pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor is not among MEDSEGDIFF_BACKENDS")
@pytest.mark.parametrize("setting", ["compile", "tf32"])
def test_jittor_refuses(setting):
    runtime = Backend("jittor").module("runtime")
    with pytest.raises(UserError, match=f"--{setting}: found True with --backend jittor; expected False"):
        runtime.start(**{setting: True})

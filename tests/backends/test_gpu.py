"""Test what the PyTorch mirror does on a GPU, without one: it mixes no devices, and waits for the GPU only where it
must. `support.imitated_gpu` says how. Only the functions of `READS` wait, and each of them still does."""

from unittest import mock

import numpy as np
import pytest
from support.backends import BACKENDS, Backend
from support.small import FAMILIES, RandomDataset, small_config

from guided_diffusion_core.config import SamplingConfig, resolve
from guided_diffusion_core.diffusion.solvers import SOLVERS
from guided_diffusion_core.networks import registry
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.system.devices import Device
from parity.rule import RULE

if "pytorch" not in BACKENDS:
    pytest.skip("PyTorch is not among MEDSEGDIFF_BACKENDS", allow_module_level=True)

import torch
from support.imitated_gpu import META, TwoDevices, imitated_gpu

# Functions that wait for the GPU -> why they may.
READS = {
    "train_util._means": "somebody asks for the losses: a line of the log, a checkpoint or a validation is due",
    "train_util._gather_batch": "loss-second-moment: the losses decide which times the next step draws",
    "optim.all_finite": "fp16: a step whose gradients overflow is left out",
    "train_util.networks": "a checkpoint is written",
    "train_util._average_state": "a checkpoint is written, or a validation begins",
    "train_util.average_sampler": "a validation begins",
    "sample_util.__call__": "the masks of a batch are done",
}

pytestmark = pytest.mark.usefixtures("example")
PYTORCH = Backend("pytorch")
families = pytest.mark.parametrize("family", FAMILIES)
precisions = pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])


@pytest.fixture
def watch():
    """Imitate a GPU, and yield the `Watch` of what happens on it."""
    runtime = PYTORCH.module("runtime")
    with imitated_gpu() as found:
        yield found
    runtime.set_mixed_precision("no")


def create_loop(family="medsegdiff_new", **settings):
    """Build a training loop on the current device."""
    config = resolve({**FAMILIES[family], "batch_size": 4, "microbatch": 2, **settings})
    return PYTORCH.module("train_util").create_train_loop(config, RandomDataset())


def batch():
    dataset = RandomDataset()
    return [torch.from_numpy(np.array(part[:4])) for part in (dataset.images, dataset.masks)]


def test_every_family_is_tested():
    assert set(FAMILIES) == set(registry.families())


@families
@precisions
def test_a_training_step_waits_for_nothing(watch, family, mixed_precision):
    """Require it of forward pass, losses, backward pass, AdamW and averages; fp16 has to read one number a step."""
    loop = create_loop(family, mixed_precision=mixed_precision)
    watch.reads.clear()
    watch.operators.clear()
    values = [loop.run_step(*batch()) for _ in range(3)]
    assert dict(watch.reads) == ({"optim.all_finite": 3} if mixed_precision == "fp16" else {})
    assert watch.operators["_fused_adamw_"] == 3
    for tensor in (*loop.model.state_dict().values(), *loop.ema_params[0], *loop.opt.moments()[1]):
        assert tensor.device.type == META
    watch.reads.clear()
    assert all(value["total"] == 0 for value in values)
    assert set(watch.reads) == {"train_util._means"}


@pytest.mark.parametrize("family", ["medsegdiff_new", "medsegdiff_v1"])
def test_a_step_that_recomputes_waits_for_nothing(watch, family):
    loop = create_loop(family, use_checkpoint=True)
    watch.reads.clear()
    loop.run_step(*batch())
    assert not watch.reads


def test_noise_of_the_loader_waits_for_nothing(watch):
    loop = create_loop()
    noise = {site: torch.zeros(4, *shape) for site, shape in loop.method.noise_shapes(32).items()}
    watch.reads.clear()
    loop.run_step(*batch(), noise)
    assert not watch.reads


@pytest.mark.parametrize("device, pinned", [("cuda:1", True), ("cpu", False), ("mps", False)])
def test_a_gpu_fetches_batches_and_arrays_from_pinned_memory(monkeypatch, device, pinned):
    """Require it of what the loader and `to_tensor` are asked for: no machine without a GPU can pin memory."""
    runtime = PYTORCH.module("runtime")
    train_util = PYTORCH.module("train_util")
    monkeypatch.setattr(runtime.current, "device", Device(device))
    with mock.patch.object(train_util, "DataLoader", return_value=[]) as loader:
        list(train_util.make_loader([], 2, num_workers=2))
    assert loader.call_args.kwargs["pin_memory"] is pinned
    with mock.patch.object(torch, "from_numpy") as made:
        runtime.to_tensor([1.0])
    source = made.return_value.pin_memory.return_value if pinned else made.return_value
    source.to.assert_called_once_with(device, non_blocking=device != "mps")


@families
@precisions
@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_sampler_waits_for_its_masks_alone(watch, family, mixed_precision, sampler):
    config = resolve(FAMILIES[family])
    runtime = PYTORCH.module("runtime")
    runtime.set_mixed_precision(mixed_precision)
    model, process = PYTORCH.module("build").build(config)
    model.eval()
    for thresholding in {False, sampler == "dpm-solver++"}:
        sampling = SamplingConfig(
            sampler=sampler, sample_steps=3, num_ensemble=2, eta=1.0, dynamic_thresholding=thresholding
        )
        sample = PYTORCH.module("sample_util").EnsembleSampler(model, process, sampling, NoiseTape(0))
        watch.reads.clear()
        masks = sample(RandomDataset().images[:2], ["a", "b"])
        assert masks.shape == (2, 2, 1, 32, 32)
        assert dict(watch.reads) == {"sample_util.__call__": 1}


@pytest.mark.parametrize("settings", [{}, {"use_kl": True}, {"rescale_learned_sigmas": True}, {"predict_xstart": True}])
def test_every_objective_waits_for_nothing(watch, settings):
    loop = create_loop(**settings, learn_sigma=True)
    watch.reads.clear()
    loop.run_step(*batch())
    assert not watch.reads


def test_reads_are_those_of_the_list(watch):
    """Let everything that waits happen: a listed read that is no more fails too."""
    config = small_config(
        batch_size=2, mixed_precision="fp16", schedule_sampler="loss-second-moment", diffusion_steps=30
    )
    loop = PYTORCH.module("train_util").create_train_loop(config, RandomDataset())
    watch.reads.clear()
    dict(loop.run_step(*[part[:2] for part in batch()]))
    loop.networks()
    loop.average_sampler(config, SamplingConfig(sample_steps=2, num_ensemble=1))(RandomDataset().images[:1], ["a"])
    assert set(watch.reads) == set(READS)
    assert all(READS.values())


def test_a_network_on_a_gpu_computes_by_its_fast_operators(watch):
    """Require fused attention, convolutions with the channels last, and none of the kernels for a CPU."""
    attention = torch.nn.functional.scaled_dot_product_attention
    settings = {"image_size": 128, "num_channels": 128, "channel_mult": "1,1,1", "attention_resolutions": "32"}
    with (
        mock.patch("guided_diffusion_pt.kernels.winograd._convolve", side_effect=AssertionError),
        mock.patch("guided_diffusion_pt.kernels.group_norm._statistics", side_effect=AssertionError),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", side_effect=attention) as fused,
    ):
        loop = create_loop(**settings)
        loop.run_step(*[torch.zeros(4, channels, 128, 128) for channels in (3, 1)])
    assert fused.call_count == 2 * 4  # blocks with attention, in each of two microbatches
    weight = loop.model.input_blocks[1][0].in_layers[2].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


@pytest.mark.parametrize("place", ["nn", "process", "gaussian_diffusion", "methods.diffusion"])
def test_a_constant_on_the_cpu_is_found(watch, place):
    """Plant it: an operator meets two devices, or the constant is copied while the step waits."""
    loop = create_loop(learn_sigma=True)
    module = PYTORCH.module(place)
    careless = mock.Mock(wraps=module.runtime)
    careless.to_tensor = lambda array, dtype=None: torch.from_numpy(np.array(array, dtype=dtype))
    watch.reads.clear()
    with mock.patch.object(module, "runtime", careless):
        try:
            loop.run_step(*batch())
        except TwoDevices:
            return
    assert watch.reads


def number(tensor):
    return float(tensor.detach().sum())


def array(tensor):
    return tensor.cpu()


def blocking_copy(tensor):
    return torch.zeros(3).to(tensor.device)


@pytest.mark.parametrize("wait", [number, array, blocking_copy, bool])
def test_a_wait_is_found(watch, wait):
    nn = PYTORCH.module("nn")
    loop = create_loop()
    watch.reads.clear()
    update = nn.mean_flat

    def mean_flat(tensor):
        found = update(tensor)
        wait(found.sum())
        return found

    with mock.patch.object(PYTORCH.module("gaussian_diffusion"), "mean_flat", mean_flat):
        loop.run_step(*batch())
    assert watch.reads


@pytest.mark.parametrize("wait", [torch.nonzero, torch.unique, lambda tensor: tensor[tensor > 0]])
def test_a_shape_that_depends_on_values_is_found(watch, wait):
    with pytest.raises((AssertionError, NotImplementedError)):
        wait(torch.zeros(3, device=META))


@pytest.mark.parametrize("shape", [(2, 64, 256), (3, 32, 17), (1, 8, 1), (2, 128, 64)])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_fused_attention_is_attention(shape, precision):
    """Compare result and gradients with float64, by the rule of the parity suite."""
    unet = PYTORCH.module("unet")
    generator = torch.Generator().manual_seed(1)
    exact = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    slope = torch.randn(shape, generator=generator, dtype=torch.float64)

    def computed(attention, dtype):
        given = [value.to(dtype).requires_grad_() for value in exact]
        out = attention(*given)
        return [out.detach(), *torch.autograd.grad(out, given, slope.to(dtype))]

    dtype = getattr(torch, precision)
    places = {"float32": RULE.last_places, "float64": RULE.gate_last_places}[precision]
    results = [computed(unet.scaled_attention, torch.float64), computed(unet.scaled_attention, dtype)]
    for truth, formula, fused in zip(*results, computed(unet._fused_attention, dtype)):
        own = float((formula - truth).abs().max())
        rounding = torch.finfo(dtype).eps * float(truth.abs().max())
        assert float((fused - truth).abs().max()) <= RULE.multiple * own + places * rounding


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_optimizer_reads_all_tensors_in_the_parameters_order(weight_decay):
    """Require of parameters whose channels come last the bits of those whose channels come first, also after a
    restore."""
    optim = PYTORCH.module("optim")
    generator = torch.Generator().manual_seed(2)
    values = [torch.randn(shape, generator=generator) for shape in ((6, 4, 3, 3), (5, 8, 1, 1), (7,))]
    steps = [[torch.randn(value.shape, generator=generator) for value in values] for _ in range(3)]
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        params = []
        for value in values:
            layout = order if value.dim() == 4 else torch.contiguous_format
            params.append(value.clone(memory_format=layout).requires_grad_())
        optimizer = optim.AdamW(params, weight_decay=weight_decay)
        optimizer.step(steps[0], 1e-2)
        optimizer.step(
            [step.to(memory_format=torch.channels_last) if step.dim() == 4 else step for step in steps[1]], 0.1
        )
        moments = [[moment.detach().numpy().copy() for moment in kind] for kind in optimizer.moments()]
        resumed = optim.AdamW(params, weight_decay=weight_decay)
        resumed.restore(*moments, 2)
        resumed.step(steps[2], 1e-2)
        found.append([param.detach().clone(memory_format=torch.contiguous_format) for param in params])
    assert all(map(torch.equal, *found))

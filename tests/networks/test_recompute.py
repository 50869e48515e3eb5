"""Gradient checkpointing: the numbers stay the same, and the activations are computed again instead of kept."""

import numpy as np
import pytest
from support.backends import BACKENDS, Backend
from support.small import NETWORK, NETWORK_V1, RandomDataset, computing, random_state, small_config

from guided_diffusion_core.networks.registry import state_shapes
from guided_diffusion_core.networks.state import is_buffer

NETWORKS = {"new": NETWORK, "1": NETWORK_V1}


def create(backend, use_checkpoint, version="new", **settings):
    """Build a training loop of a small network."""
    settings = {
        **NETWORKS[version],
        "use_checkpoint": use_checkpoint,
        "dropout": 0.3,
        "highway_dropout": 0.5,
        "batch_size": 4,
        **settings,
    }
    loop = backend.module("train_util").create_train_loop(small_config(**settings), RandomDataset())
    # The weights have no zeros: most gradients are zero with the initial ones.
    shapes = state_shapes(small_config(**settings).model)
    backend.module("runtime").load_state(loop.model, random_state(shapes))
    return loop


def batch(backend, loop):
    """Return the first training batch (N, C + 1, S, S), in the precision of the process."""
    runtime = backend.module("runtime")
    image, mask = next(iter(loop.data))
    arrays = np.concatenate([runtime.to_numpy(image), runtime.to_numpy(mask)], axis=1)
    return runtime.to_tensor(arrays, runtime.precision())


def first_step(backend, **settings):
    """Return the losses, gradients and buffers of the first batch, by name, numpy."""
    loop = create(backend, **settings)
    runtime = backend.module("runtime")
    values, gradients = loop.forward_backward(batch(backend, loop))
    buffers = {name: value for name, value in runtime.state_arrays(loop.model).items() if is_buffer(name)}
    return values, {name: runtime.to_numpy(value) for name, value in zip(loop.names, gradients)}, buffers


@pytest.mark.parametrize("version", ["new", "1"])
def test_numbers_are_the_same(backend, version):
    """Compare losses, gradients and running statistics with and without checkpointing.

    They are equal to the bit in PyTorch. Jittor fuses the operators of the repeated pass in another way, which rounds
    in another way: 12 digits agree in float64. Each dropout mask is drawn twice and each batch counts once, in
    microbatches too.
    """
    batch_size = 2 if version == "new" else 4
    with computing("float64", backend):
        (kept, gradients, buffers), (again, others, other_buffers) = (
            first_step(backend, use_checkpoint=flag, version=version, batch_size=batch_size, microbatch=2)
            for flag in (False, True)
        )
    assert again == pytest.approx(kept, rel=0 if backend.name == "pytorch" else 1e-13, abs=0)
    scale = max(np.abs(value).max() for value in gradients.values())
    for name, gradient in gradients.items():
        if backend.name == "pytorch":
            np.testing.assert_array_equal(others[name], gradient)
        else:
            # The true gradient of a bias before a norm is zero: it is compared on the scale of the whole network.
            assert np.abs(others[name] - gradient).max() <= 1e-12 * max(np.abs(gradient).max(), 1e-3 * scale), name
    assert len(buffers) == 3 * (22 if version == "new" else 14)
    for name, value in buffers.items():
        np.testing.assert_array_equal(other_buffers[name], value, err_msg=name)
        assert not name.endswith("tracked") or value == batch_size // 2


@pytest.mark.parametrize("version", ["new", "1"])
def test_every_convolution_but_the_mask_heads_runs_twice(backend, version):
    """Count the calls of each convolution: outside a checkpoint, Jittor computes one with far more memory."""

    def calls(flag):
        loop = create(backend, flag, version=version, microbatch=4)
        counts = {}
        forward = "forward" if backend.name == "pytorch" else "execute"
        for name, module in loop.model.named_modules():
            if type(module).__name__ in ("Conv2d", "Conv", "Conv1d", "Conv3x3"):
                module.__dict__[forward] = counted(getattr(module, forward), name, counts)
        loop.forward_backward(batch(backend, loop))
        return counts

    def counted(inner, name, counts):
        def forward(*given):
            counts[name] = counts.get(name, 0) + 1
            return inner(*given)

        return forward

    kept = calls(False)
    again = calls(True)
    assert len(kept) > 40 and set(kept.values()) == {1}
    assert {name for name in again if again[name] != 2} == {"hwm.seg_outputs.0"}


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
def test_what_pytorch_keeps():
    """Compare the bytes that the forward pass leaves for the backward pass."""
    import torch

    def kept(flag):
        backend = Backend("pytorch")
        seen = {}
        loop = create(backend, flag)
        parameters = {param.data_ptr() for param in loop.params}

        def pack(tensor):
            if tensor.data_ptr() not in parameters:
                seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        backend.module("nn").set_dropout_noise(loop.model, loop.tape, 0, range(4))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = loop.model(batch(backend, loop), torch.zeros(4, dtype=torch.int64))
        assert out[0].requires_grad
        return sum(seen.values())

    assert kept(True) < 0.4 * kept(False)


@pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor is not among MEDSEGDIFF_BACKENDS")
def test_what_jittor_keeps(monkeypatch):
    """Require that Jittor's graph, which keeps its results, does not grow from one recomputation to the next."""
    backend = Backend("jittor")
    recompute = backend.module("recompute")
    runtime = backend.module("runtime")
    held = []
    inner = recompute._Recomputed.grad

    def grad(self, *given):
        found = inner(self, *given)
        held.append(runtime.jt.liveness_info()["lived_ops"])
        return found

    monkeypatch.setattr(recompute._Recomputed, "grad", grad)
    loop = create(backend, True)
    loop.forward_backward(batch(backend, loop))
    assert len(held) > 20
    assert max(held) < 1.5 * held[0], "a graph that is kept adds about 100 operators each time"

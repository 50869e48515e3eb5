"""Several processes, started by torchrun: how they agree on gradients, statistics and decisions.

Twin of `guided_diffusion_jt/dist_util.py`. Gradients are averaged once per optimizer step, as
DistributedDataParallel does. The hooks of that need `backward()`; the loop asks for the gradients of
each microbatch instead (`optim.gradients`).
"""

from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch as th
import torch.distributed as dist

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system import devices, processes
from guided_diffusion_pt import runtime

# A dead process breaks its connections, which is noticed at once. A process that computes for long is not dead.
PATIENCE = timedelta(days=30)


def setup_dist():
    """Connect the processes of this run, once, and return their group: `processes.Alone` without a launcher.

    Raises `UserError` under a launcher that this backend does not serve, and for devices of several kinds.
    """
    found = processes.launched_for("pytorch")
    if found.size > 1 and runtime.current.group.size == 1:
        device = runtime.current.device
        libraries = _libraries(device)
        with _explained():
            dist.init_process_group(libraries, timeout=PATIENCE)
        connected = Group(found.rank, found.size)
        devices.require_one_kind(connected, device)
        runtime.current.group = connected
    return runtime.current.group


def _libraries(device):
    """Return the libraries that connect processes on a `Device`: tensors travel by that of the device, numpy's arrays
    by that of the CPU. Raises `UserError` if the one for GPUs is missing."""
    if device.kind != devices.CUDA:
        return "gloo"
    if not dist.is_nccl_available():
        raise found_expected(
            f"--device {device.name} in several processes",
            "a PyTorch without NCCL",
            "one with it, which connects GPUs",
            "Install PyTorch's own build for CUDA, or start one process.",
        )
    return "cpu:gloo,cuda:nccl"


def group():
    """Return the processes that compute together: a `Group`, or `processes.Alone`."""
    return runtime.current.group


class Group:
    """Several processes. All of them call the same methods in the same order."""

    def __init__(self, rank, size):
        self.rank = rank
        self.size = size

    def gather(self, values):
        """Return the values of every process: numpy (size, *shape of the values of one)."""
        own = th.from_numpy(np.array(values))
        found = [th.empty_like(own) for _ in range(self.size)]
        with _explained():
            dist.all_gather(found, own)
        return th.stack(found).numpy()

    def close(self):
        """Leave the group in good order, when all work is done."""
        dist.destroy_process_group()


class _AllReduce(th.autograd.Function):
    """A sum over the processes. It is part of the loss of each process, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, tensor):
        return _summed(tensor)

    @staticmethod
    def backward(ctx, grad):
        return _summed(grad)


def all_reduce(tensor):
    """Return the sum of the tensors of all processes, in each of them. Its gradient is that of the sum of their
    losses."""
    return _AllReduce.apply(tensor) if runtime.current.group.size > 1 else tensor


def average(tensors):
    """Return the mean of each tensor of a list over the processes, with the same bits in all of them."""
    if runtime.current.group.size == 1:
        return tensors
    flat = _summed(th.cat([tensor.reshape(-1) for tensor in tensors])) / runtime.current.group.size
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors)]


def _summed(tensor):
    total = tensor.detach().clone(memory_format=th.contiguous_format)
    with _explained():
        dist.all_reduce(total)
    return total


@contextmanager
def _explained():
    """Turn the errors of a broken connection into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        raise processes.lost(str(error).splitlines()[0]) from error

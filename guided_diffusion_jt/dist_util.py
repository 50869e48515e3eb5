"""Several processes, started by mpirun: how they agree on gradients, statistics and decisions.

Twin of `guided_diffusion_pt/dist_util.py`. The messages go through mpi4py, not through Jittor's own MPI
module. That one is compiled into the cache which runs of one process share, and splits the batches of every loader by
itself. It also waits inside a call that answers no signal: a process whose partner was killed could not report it.
"""

import time

import numpy as np

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system import devices, processes
from guided_diffusion_jt import runtime
from guided_diffusion_jt.runtime import jt


def setup_dist():
    """Connect the processes of this run, once, and return their group: `processes.Alone` without a launcher.

    Raises `UserError` under a launcher that this backend does not serve, and for devices of several kinds.
    """
    found = processes.launched_for("jittor")
    if found.size > 1 and runtime.current.group.size == 1:
        connected = Group(found.rank, found.size)
        devices.require_one_kind(connected, runtime.current.device)
        runtime.current.group = connected
    return runtime.current.group


def group():
    """Return the processes that compute together: a `Group`, or `processes.Alone`."""
    return runtime.current.group


def _mpi():
    """Import mpi4py's MPI, which that initializes, and return it."""
    try:
        import mpi4py

        # MPI's finalizer would wait for the others at the end of a process with an error. If a process ends without
        # it, mpirun ends the others.
        mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise found_expected(
            "mpirun",
            f"no usable mpi4py ({error})",
            "mpi4py and the libraries of OpenMPI",
            "Run: apt-get install openmpi-bin; pip install mpi4py",
        ) from error
    return MPI


class Group:
    """Several processes. All of them call the same methods in the same order."""

    def __init__(self, rank, size):
        self.rank = rank
        self.size = size
        self.mpi = _mpi()

    def gather(self, values):
        """Return the values of every process: numpy (size, *shape of the values of one)."""
        own = np.array(values)
        found = np.empty((self.size, *own.shape), own.dtype)
        _wait(self.mpi.COMM_WORLD.Iallgather(own, found))
        return found

    def sum_into(self, values, total):
        """Set the numpy array `total` to the sum of the processes' `values`."""
        _wait(self.mpi.COMM_WORLD.Iallreduce(np.ascontiguousarray(values), total))

    def close(self):
        """Leave the group in good order, when all work is done."""
        self.mpi.Finalize()


def _wait(request):
    """Wait for a message and answer signals, which Python does only between its own instructions."""
    while not request.Test():
        time.sleep(0)


class _AllReduce(jt.Function):
    """A sum over the processes. It is part of the loss of each process, so its gradient is the sum of theirs."""

    def execute(self, tensor):
        return _summed(tensor)

    def grad(self, grad):
        return _summed(grad)


def _summed(tensor):
    if runtime.is_generic():
        # Fetched at once: in the midst of the graph, an operator of numpy's finds the tensors of a GPU there.
        values = runtime.to_numpy(tensor)
        total = np.empty_like(values)
        runtime.current.group.sum_into(values, total)
        return runtime.to_tensor(total)

    def forward(_, data):
        runtime.current.group.sum_into(data["inputs"][0], data["outputs"][0])

    return jt.numpy_code(tensor.shape, tensor.dtype, [tensor], forward)


def all_reduce(tensor):
    """Return the sum of the tensors of all processes, in each of them. Its gradient is that of the sum of their
    losses."""
    return _AllReduce.apply(tensor) if runtime.current.group.size > 1 else tensor


def average(tensors):
    """Return the mean of each tensor of a list over the processes, with the same bits in all of them."""
    if runtime.current.group.size == 1:
        return tensors
    arrays = [runtime.to_numpy(tensor) for tensor in tensors]
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    total = np.empty_like(flat)
    runtime.current.group.sum_into(flat, total)
    parts = np.split(total / runtime.current.group.size, np.cumsum([array.size for array in arrays])[:-1])
    return [runtime.to_tensor(part.reshape(array.shape)) for part, array in zip(parts, arrays)]

"""Several processes, started by mpirun: how they agree on gradients, statistics and decisions.

Twin of `guided_diffusion_pt/dist_util.py`. The messages go through mpi4py and not through Jittor's own MPI
module: that one is compiled into the cache which plain runs share, splits the batches of every loader by
itself, and waits inside a call in which no signal is answered, so that a process whose partner was killed
could not say so.
"""

import time

import numpy as np

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system import processes
from guided_diffusion_jt import runtime
from guided_diffusion_jt.runtime import jt


def setup_dist():
    """Connect the processes of this run, once; returns their group, `processes.Alone` without a launcher.

    Raises `UserError` under a launcher that this backend does not serve.
    """
    found = processes.launched_for("jittor")
    if found.size > 1 and runtime.current.group.size == 1:
        runtime.current.group = Group(found.rank, found.size)
    return runtime.current.group


def group():
    """The processes that compute together: a `Group`, or `processes.Alone`."""
    return runtime.current.group


def _mpi():
    """mpi4py's MPI, initialized by its import."""
    try:
        import mpi4py

        # At the end of a process with an error, MPI would wait for the others. A process that ends without
        # this farewell makes mpirun end them.
        mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise found_expected(
            "mpirun",
            f"no usable mpi4py ({error})",
            "mpi4py and the libraries of OpenMPI",
            "Run: apt-get install openmpi-bin; pip install -r requirements.txt",
        ) from error
    return MPI


class Group:
    """Several processes; each one calls the same verbs in the same order."""

    def __init__(self, rank, size):
        self.rank = rank
        self.size = size
        self.mpi = _mpi()

    def gather(self, values):
        """The values of every process: numpy (size, *shape of one's)."""
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
    """Wait for a message, answering signals: Python answers them between its own instructions alone."""
    while not request.Test():
        time.sleep(0)


class _AllReduce(jt.Function):
    """The sum over the processes is part of every process' loss: its gradient is the sum of theirs."""

    def execute(self, tensor):
        return _summed(tensor)

    def grad(self, grad):
        return _summed(grad)


def _summed(tensor):
    def forward(_, data):
        runtime.current.group.sum_into(data["inputs"][0], data["outputs"][0])

    return jt.numpy_code(tensor.shape, tensor.dtype, [tensor], forward)


def all_reduce(tensor):
    """The sum of the tensors that the processes give, in each of them; its gradient is that of the sum of
    their losses."""
    return _AllReduce.apply(tensor) if runtime.current.group.size > 1 else tensor


def average(tensors):
    """The mean of each tensor of a list over the processes, the same bits in all of them."""
    if runtime.current.group.size == 1:
        return tensors
    arrays = [runtime.to_numpy(tensor) for tensor in tensors]
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    total = np.empty_like(flat)
    runtime.current.group.sum_into(flat, total)
    parts = np.split(total / runtime.current.group.size, np.cumsum([array.size for array in arrays])[:-1])
    return [runtime.to_tensor(part.reshape(array.shape)) for part, array in zip(parts, arrays)]

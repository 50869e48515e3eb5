"""Runs of several processes: what the launcher tells each one, and which examples of a batch are its own.

`torchrun --nproc_per_node=2 scripts/segmentation_train.py ...` starts PyTorch, `mpirun -np 2 python
scripts/segmentation_train.py --backend jittor ...` Jittor. How the processes talk to each other is in
each backend's `dist_util`; nothing here depends on a framework.
`python -m guided_diffusion_core.system.processes` prints which launchers there are.
"""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib import util

import numpy as np

from guided_diffusion_core.backends import BACKENDS
from guided_diffusion_core.errors import UserError, found_expected

TORCHRUN = "torchrun"
MPIRUN = "mpirun"
# (rank, size, rank on its machine), and what else must be there, of each launcher
_VARIABLES = {
    TORCHRUN: (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("MASTER_ADDR", "MASTER_PORT")),
    MPIRUN: (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"), ()),
}
GO_ON = "What is in --out_dir is whole; go on by the same command with {flag}."
TERMINATED = 128 + signal.SIGTERM  # exit code


@dataclass(frozen=True)
class Processes:
    """The place of this process in its run: rank from 0 to size - 1; launcher: its name, "" without one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: str = ""

    def __str__(self):
        return f"process {self.rank} of {self.size}"


class Alone:
    """The only process of its run, with the verbs of a `dist_util.Group`."""

    rank = 0
    size = 1

    def gather(self, values):
        """The values of every process: numpy (size, *shape of one's)."""
        return np.asarray(values)[None]

    def close(self):
        """Leave the group in good order, when all work is done."""


def launched():
    """What the environment says: the `Processes` of a launcher, or those of a run without one."""
    for launcher, (names, others) in _VARIABLES.items():
        if all(name in os.environ for name in (*names, *others)):
            found = Processes(*(int(os.environ[name]) for name in names), launcher)
            if found.size > 1:
                return found
    return Processes()


def launched_for(backend):
    """`launched()`; `UserError` if the backend cannot connect what that launcher has started."""
    found = launched()
    launcher = BACKENDS[backend].launcher
    if found.size > 1 and found.launcher != launcher:
        raise found_expected(
            f"--backend {backend}",
            f"{found.size} processes of {found.launcher}",
            f"{launcher}, which connects those of this backend",
            f"Start it with {launcher}, or without a launcher.",
        )
    return found


def own_slots(count, microbatch, rank, size):
    """The places in the whole batch of the `count` examples that a process trains on in one step, a list.

    Each process takes an equal share of every microbatch, so that one process with `size` times the batch
    and the microbatch sees the same microbatches.
    """
    slots = []
    for start in range(0, count, microbatch):
        length = min(microbatch, count - start)
        slots += range(start * size + rank * length, start * size + (rank + 1) * length)
    return slots


def shared_batch(count, trained, size):
    """A process' share of a batch or microbatch of `count` examples in each of `trained` processes, when `size`
    processes go on; None if it cannot be shared evenly."""
    return None if count * trained % size else count * trained // size


def any_process(group, flag):
    """Whether a flag is set in some process of a group: the same answer in all."""
    return bool(group.gather([float(flag)]).any())


def lost(reason):
    """The `UserError` of a process whose connection to another one is gone."""
    return UserError(
        f"{launched()}: another process of this run has ended ({reason}). "
        f"{GO_ON.format(flag='--resume last, or --continue when sampling')}"
    )


def explain_termination(found, flag):
    """On SIGTERM say how to go on, and end: a launcher sends it to the processes that are left when one
    has ended. Without a launcher SIGTERM stays what it is.

    found: `Processes`. flag: what the command goes on with.
    """

    def end(signum, frame):
        os.write(
            2,
            f"\n{found}: {found.launcher} ends the run, because another process has ended or it was told to. "
            f"{GO_ON.format(flag=flag)}\n".encode(),
        )
        os._exit(TERMINATED)  # at once, also out of a call that waits for the others

    if found.size > 1:
        signal.signal(signal.SIGTERM, end)
        # Pools end their processes by SIGTERM, and wait for ever for one that gets it between two instructions
        # of Python.
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def launchers():
    """Name -> version or what is missing, of each launcher, texts."""
    mpirun = shutil.which(MPIRUN)
    version = subprocess.run([mpirun, "--version"], text=True, capture_output=True).stdout if mpirun else ""
    found = version.splitlines()[0] if version else "not found; install it: apt-get install openmpi-bin"
    if version and util.find_spec("mpi4py") is None:
        found += ", but mpi4py is missing; run: pip install -r requirements.txt"
    torch = util.find_spec("torch") is not None
    return {
        TORCHRUN: "python -m torch.distributed.run" if torch else "not found; PyTorch is not installed",
        MPIRUN: found,
    }


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}: {found}\n" for name, found in launchers().items())

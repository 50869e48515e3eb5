"""Runs of several processes: the place of each one in its run, and its share of a batch.

    torchrun --nproc_per_node=2 -m medsegdiff train ...
    mpirun -np 2 medsegdiff train --backend jittor ...

start PyTorch and Jittor. The `dist_util` of each backend connects the processes; nothing here depends on a framework.
`python -m guided_diffusion_core.system.processes` prints the launchers of this machine.
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
# Launcher -> its variables for (rank, size, rank on its machine), others that it must set, and the one for the size on
# its machine.
_VARIABLES = {
    TORCHRUN: (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("MASTER_ADDR", "MASTER_PORT"), "LOCAL_WORLD_SIZE"),
    MPIRUN: (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        (),
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
}
GO_ON = "What is in --out_dir is whole; go on by the same command with {flag}."
TERMINATED = 128 + signal.SIGTERM  # exit code


@dataclass(frozen=True)
class Processes:
    """The place of this process in its run.

    rank:       0 to size - 1.
    size:       number of processes.
    local_rank: rank on its machine.
    local_size: number of processes on its machine.
    launcher:   name of the launcher, "" without one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = ""

    def __str__(self):
        return f"process {self.rank} of {self.size}"


class Alone:
    """The only process of its run, with the methods of a `dist_util.Group`."""

    rank = 0
    size = 1

    def gather(self, values):
        """Return the values of every process: numpy (size, *shape of the values of one)."""
        return np.asarray(values)[None]

    def close(self):
        """Leave the group in good order, when all work is done."""


def launched():
    """Return the `Processes` that the environment describes: those of a launcher, or of a run without one."""
    for launcher, (names, others, local) in _VARIABLES.items():
        if all(name in os.environ for name in (*names, *others)):
            rank, size, local_rank = (int(os.environ[name]) for name in names)
            if size > 1:
                return Processes(rank, size, local_rank, int(os.environ.get(local, size)), launcher)
    return Processes()


def launched_for(backend):
    """Return `launched()`. Raises `UserError` if the backend cannot connect the processes of that launcher."""
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
    """Return the indices in the whole batch of the examples that a process trains on in one step, a list.

    count:      number of these examples.
    microbatch: examples of one forward pass of a process.
    rank, size: place of the process in the run.

    Each process takes an equal share of every microbatch. One process with `size` times the batch and the microbatch
    has the same microbatches.
    """
    # Example: two processes with 3 examples each, in microbatches of 2. The whole batch has the microbatches 0123 and
    # 45. Process 0 has 0, 1 and 4, and process 1 has 2, 3 and 5.
    slots = []
    for start in range(0, count, microbatch):
        length = min(microbatch, count - start)
        slots += range(start * size + rank * length, start * size + (rank + 1) * length)
    return slots


def shared_batch(count, trained, size):
    """Return the share of one process in a batch when the number of processes changes; None if shares are not equal.

    count:   examples of one process so far.
    trained: number of processes so far.
    size:    number of processes from now on.
    """
    whole = count * trained
    return None if whole % size else whole // size


def any_process(group, flag):
    """Return whether a flag is set in some process of a group, with the same answer in all of them."""
    flags = group.gather([float(flag)])  # (size, 1)
    return bool(flags.any())


def lost(reason):
    """Return the `UserError` of a process that has lost the connection to another one."""
    return UserError(
        f"{launched()}: another process of this run has ended ({reason}). "
        f"{GO_ON.format(flag='--resume last, or --continue when sampling')}"
    )


def explain_termination(found, flag):
    """Let SIGTERM print how to continue the run, and end the process.

    A launcher sends this signal to the other processes when one has ended. SIGTERM stays as it is without a launcher.

    found: `Processes`.
    flag:  the flag with which the command continues.
    """

    def end(signum, frame):
        # not `print`: the signal may come in the middle of one
        os.write(
            2,
            f"\n{found}: {found.launcher} ends the run, because another process has ended or it was told to. "
            f"{GO_ON.format(flag=flag)}\n".encode(),
        )
        os._exit(TERMINATED)  # at once, also out of a call that waits for the others

    if found.size > 1:
        signal.signal(signal.SIGTERM, end)
        # Pools end their processes by SIGTERM, and wait forever for one that gets it between two instructions of
        # Python. So children have the default.
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def launchers():
    """Return the name of each launcher -> its version, or the part of it that is missing, as texts."""
    mpirun = shutil.which(MPIRUN)
    version = subprocess.run([mpirun, "--version"], text=True, capture_output=True).stdout if mpirun else ""
    found = version.splitlines()[0] if version else "not found; install it: apt-get install openmpi-bin"
    if version and util.find_spec("mpi4py") is None:
        found += ", but mpi4py is missing; run: pip install mpi4py"
    torch = util.find_spec("torch") is not None
    return {
        TORCHRUN: "python -m torch.distributed.run" if torch else "not found; PyTorch is not installed",
        MPIRUN: found,
    }


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}: {found}\n" for name, found in launchers().items())

"""Commands that start several processes, and their environment."""

import os
import shutil
import sys

from support.requirements import lacking

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def launcher(backend, count=2):
    """Return the beginning of a command that starts `count` processes.

    Without OpenMPI the test is skipped, or fails if MEDSEGDIFF_REQUIRE_MPI is set, as in .ci/run.
    """
    if backend.name == "pytorch":
        return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}"]
    if not shutil.which("mpirun"):
        lacking("no mpirun; install it: apt-get install openmpi-bin", "MEDSEGDIFF_REQUIRE_MPI")
    return ["mpirun", "-np", str(count), "--oversubscribe", "--bind-to", "none", sys.executable]

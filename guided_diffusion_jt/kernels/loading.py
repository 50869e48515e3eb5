"""Importing Jittor on various machines: it compiles itself, and reads its settings when it is imported."""

import fcntl
import os
import platform
import sys
import tempfile
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np

from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system import environment
from guided_diffusion_jt.kernels import compiling

# Distribution and file whose folder stands for oneDNN's `lib` and `include`.
_ONEDNN = {"lib": ("onednn-cpu-gomp", "libmkldnn.so"), "include": ("onednn-devel-cpu-gomp", "dnnl.h")}
_ONEDNN_INSTALL = "pip install onednn-cpu-gomp==2021.2.0 onednn-devel-cpu-gomp==2021.2.0"


def prepare():
    """Make everything that `import jittor` looks at: settings, compiler, oneDNN.

    Imports no Jittor. What the user has set in the environment stays. Raises `UserError` if the
    compiler, Python's headers or a suitable numpy is missing, or the cache cannot be written.
    Returns the Path of Jittor's compiled code.
    """
    if int(np.__version__.split(".")[0]) >= 2:
        raise found_expected(
            "numpy", np.__version__, "numpy below 2, with which Jittor crashes", 'Run: pip install "numpy<2"'
        )
    environment.check_python()
    environment.check_compiler()
    if "python_config_path" not in os.environ:
        os.environ["python_config_path"] = environment.python_config()
    for name, value in (
        ("nvcc_path", ""),  # a CUDA toolkit without a driver breaks the import
        ("mpicc_path", ""),  # with OpenMPI installed, the import would build an MPI module; `dist_util` serves
        ("FIX_TORCH_ERROR", "0"),  # else Jittor imports torch
        ("log_silent", "1"),
        # else the git branch around the packages: each one compiles anew; a cache of our own, since the flags
        # of `compiling` would make Jittor compile itself again for every other program
        ("cache_name", "medsegdiff"),
    ):
        os.environ.setdefault(name, value)
    try:
        import jittor_utils  # the part of Jittor that knows its folders; compiles nothing

        onednn = link_onednn(Path(jittor_utils.home()) / ".cache" / "jittor" / "mkl" / _onednn_folder())
    except OSError as error:
        raise found_expected(
            error.filename, error.strerror, "a folder for Jittor's compiled code", "Set HOME to a writable folder."
        ) from error
    if not onednn and os.environ.setdefault("use_mkl", "0") == "0":
        sys.stderr.write(
            f"Jittor runs without oneDNN: convolutions are about 100 times slower. Install it: {_ONEDNN_INSTALL}\n"
        )
    cache = Path(jittor_utils.cache_path)
    if not any(cache.glob("jittor_core*.so")):
        sys.stderr.write("Jittor compiles its core, once on this machine: about 3 minutes on 2 cores.\n")
    compiling.prepare_core(cache)
    return cache


def _onednn_folder():
    """Name of the folder below Jittor's `mkl` in which it looks for oneDNN 2.2."""
    return "dnnl_lnx_2.2.0_cpu_gomp" + ("_aarch64" if platform.machine() == "aarch64" else "")


def link_onednn(folder):
    """Link the installed oneDNN to `folder`, where Jittor looks before it tries to download one.

    folder: Path. Links of another installation are replaced; what Jittor itself has put there is
            not. Several processes may do this at once.
    Returns whether a complete oneDNN is there now.
    """
    for name, (distribution, file) in _ONEDNN.items():
        target = _installed_folder(distribution, file)
        link = folder / name
        if target is None or (link.exists() and not link.is_symlink()):
            continue
        if not link.is_symlink() or os.readlink(link) != target:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".") as own:
                (Path(own) / name).symlink_to(target)
                os.replace(Path(own) / name, link)
    return all((folder / name / file).is_file() for name, (_, file) in _ONEDNN.items())


def _installed_folder(distribution, file):
    """Folder into which `distribution` was installed the file of that name, or None."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    found = [os.path.realpath(entry.locate()) for entry in files if entry.name == file]
    # a header may also lie in a folder below the one that is meant
    return min((os.path.dirname(path) for path in found if os.path.isfile(path)), key=len, default=None)


@contextmanager
def _as_without_mpirun():
    """Hide mpirun from Jittor, which else takes its own MPI module for granted; and let the processes of a run in
    one after the other: two that bring the compiled core up to date at once can both fail."""
    import jittor_utils

    hidden = os.environ.pop("OMPI_COMM_WORLD_SIZE", None)
    lock = None
    try:
        if hidden is not None:
            folder = Path(jittor_utils.home()) / ".cache" / "jittor"
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / "import.lock", "w")
            fcntl.lockf(lock, fcntl.LOCK_EX)  # not flock, which children inherit
        yield
    finally:
        if hidden is not None:
            os.environ["OMPI_COMM_WORLD_SIZE"] = hidden
        if lock:
            lock.close()


@_as_without_mpirun()
def _import_prepared():
    """Import Jittor as the machine is prepared now.

    A compiled core that was made for other paths or settings makes Jittor rebuild a part, ask for
    a restart in its silenced log, and leave with exit code 0 ("please rerun your command"). The
    second attempt in the same process finds that part up to date.
    """
    try:
        import jittor
    except SystemExit:
        try:
            import jittor
        except SystemExit as error:
            raise UserError(
                "Jittor could not bring its compiled core up to date. Run the command again; if that "
                "does not help, remove the folder .cache/jittor in your home."
            ) from error
    return jittor


def import_jittor():
    """Prepare the machine and import Jittor; returns its module. Raises `UserError` as `prepare` does."""
    cache = prepare()
    jittor = _import_prepared()
    compiling.prepare_operators(jittor.flags, cache)
    return jittor

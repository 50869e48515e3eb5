"""Importing Jittor on various machines. It compiles itself, and reads its settings when it is imported."""

import fcntl
import os
import platform
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np

from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system import environment
from guided_diffusion_core.system.devices import CPU
from guided_diffusion_jt.kernels import compiling, cuda
from guided_diffusion_jt.kernels.links import replace_link

# Link -> the distribution that brings oneDNN's folder of that name, and a file in that folder.
_ONEDNN = {"lib": ("onednn-cpu-gomp", "libmkldnn.so"), "include": ("onednn-devel-cpu-gomp", "dnnl.h")}
_OF_CUDA = "_cuda"  # end of the name of the cache in which Jittor is compiled for CUDA
_ONEDNN_INSTALL = "pip install onednn-cpu-gomp==2021.2.0 onednn-devel-cpu-gomp==2021.2.0"


def prepare(device=CPU):
    """Prepare everything that `import jittor` looks at: settings, compiler, oneDNN. Imports no Jittor.

    device: name of the device that computes.
    Variables that the user has set in the environment stay; on a CPU, nvcc_path does not. Returns the Path of Jittor's
    compiled code. Raises `UserError` if the compiler, Python's headers, a part of CUDA or a suitable numpy is missing,
    or the cache cannot be written.
    """
    if int(np.__version__.split(".")[0]) >= 2:
        raise found_expected(
            "numpy", np.__version__, "numpy below 2, with which Jittor crashes", 'Run: pip install "numpy<2"'
        )
    environment.check_python()
    environment.check_compiler()
    if "python_config_path" not in os.environ:
        os.environ["python_config_path"] = environment.python_config()
    if device == CPU:
        os.environ["nvcc_path"] = ""  # a CUDA toolkit without a driver breaks the import
    else:
        cuda.prepare(device)
    # By default the cache is named after the git branch around the packages, and each branch compiles again. It is
    # not shared with other programs: the flags of `compiling` would make Jittor compile itself again for them.
    name = os.environ.get("cache_name", "medsegdiff").removesuffix(_OF_CUDA)
    os.environ["cache_name"] = name if device == CPU else name + _OF_CUDA
    for name, value in (
        ("mpicc_path", ""),  # with OpenMPI installed, the import would build an MPI module; `dist_util` replaces it
        ("FIX_TORCH_ERROR", "0"),  # otherwise Jittor imports torch
        ("log_silent", "1"),
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
    if not any(cache.glob("jittor_core*.so")) and not any(cache.glob("cu*/jittor_core*.so")):
        sys.stderr.write("Jittor compiles its core, once on this machine: about 3 minutes on 2 cores.\n")
    compiling.prepare_core(cache)
    return cache


def _onednn_folder():
    """Return the name of the folder below Jittor's `mkl` in which it looks for oneDNN 2.2."""
    return "dnnl_lnx_2.2.0_cpu_gomp" + ("_aarch64" if platform.machine() == "aarch64" else "")


def link_onednn(folder):
    """Link the installed oneDNN to `folder`, where Jittor looks before it tries to download one.

    folder: Path. Links of another installation are replaced; files that Jittor has downloaded there are not.
    Returns whether the folder has a complete oneDNN now. Several processes may do this at once.
    """
    for name, (distribution, file) in _ONEDNN.items():
        target = _installed_folder(distribution, file)
        link = folder / name
        if target is None or (link.exists() and not link.is_symlink()):
            continue
        replace_link(link, target)
    return all((folder / name / file).is_file() for name, (_, file) in _ONEDNN.items())


def _installed_folder(distribution, file):
    """Return the folder into which a distribution has installed the file of that name, or None."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    found = [os.path.realpath(entry.locate()) for entry in files if entry.name == file]
    # a header may have a copy in a deeper folder: the shortest path is the right one
    return min((os.path.dirname(path) for path in found if os.path.isfile(path)), key=len, default=None)


@contextmanager
def _as_without_mpirun():
    """Hide mpirun from Jittor, which otherwise expects its own MPI module, and let the processes of a run in one
    after the other: two that bring the compiled core up to date at once can both fail."""
    import jittor_utils

    hidden = os.environ.pop("OMPI_COMM_WORLD_SIZE", None)
    if hidden is None:
        yield
        return
    folder = Path(jittor_utils.home()) / ".cache" / "jittor"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "import.lock", "w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # not flock, which children inherit
            yield
    finally:
        os.environ["OMPI_COMM_WORLD_SIZE"] = hidden


@contextmanager
def _as_in_jupyter():
    """Let Jittor leave Ctrl-C to Python, as it does in Jupyter: it would end the process at once, with exit code 1."""
    name = "JPY_PARENT_PID"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(os.getppid())
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def _without_downloads():
    """Keep Jittor from downloading what it lacks, and from taking an installation of CUDA that it made itself in place
    of the prepared one, for which it starts the process anew."""
    from jittor_utils import install_cuda, misc

    def refuse(url, *_):
        raise found_expected(
            "Jittor", f"no copy of {url}", "one, since nothing is downloaded when a command runs", "Install it."
        )

    kept = misc.download_url_to_local, install_cuda.has_installation
    misc.download_url_to_local = refuse
    install_cuda.has_installation = lambda: False
    try:
        yield
    finally:
        misc.download_url_to_local, install_cuda.has_installation = kept


@_as_in_jupyter()
@_as_without_mpirun()
@_without_downloads()
def _import_prepared():
    """Import Jittor on the prepared machine and return its module.

    If its compiled core was made for other paths or settings, Jittor rebuilds a part, asks for a restart in its
    silenced log, and leaves with exit code 0 ("please rerun your command"). The second attempt in the same process
    finds that part up to date.
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


def import_jittor(device=CPU):
    """Prepare the machine, import Jittor and return its module. Raises `UserError` as `prepare` does.

    device: name of the device that computes. Jittor is compiled for CUDA or without it, once in a process.
    If the program has imported Jittor itself, that one is returned, with its own settings.
    """
    if "jittor" in sys.modules:
        return sys.modules["jittor"]
    cache = prepare(device)
    jittor = _import_prepared()
    compiling.prepare_operators(jittor.flags, cache)
    if device != CPU:
        cuda.make_exact(jittor.flags)
    return jittor

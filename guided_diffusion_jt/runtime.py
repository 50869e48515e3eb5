"""The verbs that every other module needs of Jittor: start, conversion, precision, threads, state.

Twin of `guided_diffusion_pt/runtime.py`, but for the start: Jittor compiles itself on the
machine that it runs on, and reads its settings when it is imported.
"""

import ctypes
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
from guided_diffusion_jt import _compiling

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
        # of `_compiling` would make Jittor compile itself again for every other program
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
    _compiling._prepare_core(cache)
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
def _import_jittor():
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


_cache = prepare()
jt = _import_jittor()
_compiling._prepare_operators(jt.flags, _cache)


def to_tensor(array, dtype=None):
    """A tensor with a copy of `array`'s values; one number becomes the shape (1,).

    array: numpy array, number or nested list.
    dtype: name of a numpy type such as "float32"; None keeps the array's own (float64 and int64
           included).
    """
    tensor = _pending_tensor(array, dtype)
    # A pending array that is fused into an operator is read there in the type of the process' first
    # precision: in float64 after float32 as garbage.
    tensor.sync()
    return tensor


def _pending_tensor(array, dtype):
    array = np.asarray(array, dtype=dtype, order="C")
    return jt.array(array, dtype=str(array.dtype))  # which copies it


def to_numpy(tensor):
    """A numpy array with a copy of the tensor's values, of the same dtype."""
    return tensor.numpy().copy()


def set_threads(n):
    """Compute with n threads."""
    os.environ["OMP_NUM_THREADS"] = str(n)
    ctypes.CDLL("libgomp.so.1").omp_set_num_threads(n)


def set_precision(name):
    """The type of parameters and computation from now on: "float32" or "float64".

    Set it before a network is built or loaded. float64 is for comparisons: slow.
    """
    jt.flags.auto_convert_64_to_32 = {"float32": 1, "float64": 0}[name]


def precision():
    """The type that `set_precision` set: "float32" (at the start) or "float64"."""
    return "float32" if jt.flags.auto_convert_64_to_32 else "float64"


def set_mixed_precision(name):
    """The type in which the networks' convolutions and products compute from now on: "no" alone, that of the
    parameters.

    Measured on a CPU: a convolution with 288 products per sum is off by 0.39 of its largest value in bfloat16
    (rounding once: 0.004) and takes 50 times as long as in float32, 750 times in float16. Raises `UserError`
    for "bf16" and "fp16".
    """
    if name != "no":
        raise found_expected(
            "--mixed_precision",
            f"{name} with --backend jittor",
            "no: Jittor 1.3.11 sums up in 16 bits there, which "
            "makes bf16 wrong, and computes either 50 to 750 times slower on a CPU",
            "Leave the flag out, or use --backend pytorch.",
        )


def scalar(value):
    """A number as a factor or summand of tensors, in full precision: Jittor would take a Python
    number as float32, even beside float64."""
    return to_tensor(value, dtype=precision())


def synchronize():
    """Wait until all queued computation is done."""
    jt.sync_all(True)


def no_grad():
    """A context in which nothing is recorded for a backward pass."""
    return jt.no_grad()


def tracked_copy(tensor):
    """A copy whose own gradient can be asked for (`optim.gradients`): what flows back through this
    one use of the tensor."""
    copy = tensor.copy()
    return copy.start_grad() if copy.is_stop_grad() else copy


def assign(tensor, array):
    """Set a tensor's values in place from a numpy array of its shape."""
    tensor.update(to_tensor(array, dtype=str(tensor.dtype)))


def versions():
    """Name -> version of what the numbers depend on: Python, numpy and the framework."""
    return {"python": platform.python_version(), "numpy": np.__version__, "jittor": jt.__version__}


def _to_original(name, value):
    """A buffer as the original has it: Jittor has neither 0-d values nor a 64-bit counter here."""
    return value.astype(np.int64).reshape(()) if name.endswith("num_batches_tracked") else value


def state_arrays(model):
    """Name -> numpy array of every parameter and buffer, in float32 or float64 as computed.

    Names, order and shapes are the original's, `num_batches_tracked` (int64, ()) included.
    """
    jt.sync_all()
    return {name: _to_original(name, to_numpy(value)) for name, value in model.state_dict().items()}


def load_state(model, arrays, where="weights"):
    """Set every parameter and buffer of `model` from name -> numpy array.

    arrays: the names and shapes of `state_arrays`; floating values are cast to `precision()`.
    where:  the file they come from, for the error.
    Raises `UserError` that lists all missing, unexpected and misshapen names.
    """
    from guided_diffusion_core.checkpoints.files import fitted_state  # not needed to convert tensors

    state = model.state_dict()
    shapes = {name: () if name.endswith("num_batches_tracked") else tuple(value.shape) for name, value in state.items()}
    arrays = fitted_state(shapes, arrays, where)
    for name, value in state.items():
        dtype = precision() if "float" in str(value.dtype) else str(value.dtype)
        # pending, since to wait for one would compute Jittor's random initial values of the others, in vain
        value.update(_pending_tensor(np.reshape(arrays[name], value.shape), dtype))
    jt.sync_all()  # pending arrays fused into the first forward pass give an operator that does not compile

"""The functions of Jittor that all other modules share: start, conversion, precision, threads, state.

Twin of `guided_diffusion_pt/runtime.py`. Importing this module, or the package, imports no Jittor: that compiles
itself on the machine that it runs on, links oneDNN, and reads its settings when it is imported. `start` does it, once
in a process. The other modules of the package say `from guided_diffusion_jt.runtime import jt, nn`, in place of
`import jittor as jt`, so that whoever imports one of them first starts Jittor with the default settings.
"""

import ctypes
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np

from guided_diffusion_core.backends import advice_to_use
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system import devices, processes
from guided_diffusion_jt.kernels import cuda, loading


@dataclass
class Current:
    """The state of this backend in a process, next to Jittor's own settings.

    jittor:         the framework, None until it is started.
    device:         the `Device` that computes.
    group:          the processes that compute together; `dist_util.setup_dist` connects them.
    recomputations: number of running forward passes that repeat an earlier one (`recompute`).
    generic:        the setting of `use_generic`.
    """

    jittor: object = None
    device: devices.Device = devices.Device()
    group: object = field(default_factory=processes.Alone)
    recomputations: int = 0
    generic: bool = False


current = Current()


def start(threads=None, precision="float32", mixed_precision="no", device="cpu", tf32=False, compile=False):
    """Import Jittor, which compiles itself the first time on a machine (minutes), and apply the settings.

    A further call in the same process only applies its settings.

    threads:         number of threads that compute; None leaves it as it is.
    precision:       "float32" or "float64", for `set_precision`.
    mixed_precision: "no", "bf16" or "fp16", for `set_mixed_precision`.
    device:          "auto", "cpu", "cuda" or "cuda:N", for `devices.choose`.
    tf32:            for `set_tf32`.
    compile:         for `set_compile`.
    Raises `UserError` if the machine lacks what Jittor needs, or for a setting or device that this backend does not
    have.
    """
    set_device(devices.choose(device, find_devices, try_device))
    set_mixed_precision(mixed_precision)
    set_tf32(tf32)
    set_compile(compile)
    set_precision(precision)
    if threads is not None:
        set_threads(threads)


def started():
    """Return whether Jittor has been imported, by `start` or by the first module that needs it."""
    return current.jittor is not None


def _jittor():
    """Return the module of Jittor. The first call imports it."""
    if current.jittor is None:
        current.jittor = loading.import_jittor()
    return current.jittor


def __getattr__(name):
    """Give other modules `runtime.jt`, which is Jittor, and `runtime.nn`, its layers; the first one starts it."""
    if name == "jt":
        return _jittor()
    if name == "nn":
        return _jittor().nn
    raise AttributeError(f"module {__name__} has no attribute {name}")


def find_devices():
    """Return the `devices.Found` of this machine, without importing Jittor. One that is imported knows a GPU or not."""
    if started() and not current.jittor.has_cuda:
        return devices.Found(missing="this process has imported Jittor without CUDA")
    return cuda.find_devices()


# A computation on a device in a process of its own: where something about CUDA is wrong, Jittor can end the process.
_TRIAL = """
import sys
from guided_diffusion_core.system.devices import Device
from guided_diffusion_jt import runtime
try:
    runtime.set_device(Device(sys.argv[1]))
    ones = runtime.jt.ones((1, 1, 8, 8))
    found = runtime.nn.conv2d(ones, ones[:, :, :3, :3]).sum().item()
    error = "" if found == 9 * 36 else f"a convolution of ones gave {found}"  # 6x6 places of a 3x3 kernel
except Exception as problem:
    error = str(problem).strip().partition("\\n")[0] or type(problem).__name__
print(f"tried: {error}")
"""


def try_device(name):
    """Compute something small on a device of this name, and return the error as a text, "" for success.

    A new process does it, which takes seconds, and compiles Jittor the first time.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", _TRIAL, name], stdout=subprocess.PIPE, text=True, env=environment)
    results = [line for line in done.stdout.splitlines() if line.startswith("tried: ")]
    return results[-1].removeprefix("tried: ") if results else f"a process on it ended with exit code {done.returncode}"


def set_device(device):
    """Compute on a `Device` from now on; Jittor moves its tensors by itself.

    Raises `UserError` for a GPU if Jittor was imported without CUDA, or for another GPU: it knows one.
    """
    if device.kind == devices.CUDA:
        if current.jittor is None:
            current.jittor = loading.import_jittor(device.name)
        cuda.require(current.jittor, device.name)
    if current.jittor is not None:
        current.jittor.flags.use_cuda = int(device.kind == devices.CUDA)
    current.device = device


def device():
    """Return the name of the device that computes, such as "cuda:0"."""
    return current.device.name


def to_tensor(array, dtype=None):
    """Return a tensor with a copy of the array's values; one number becomes the shape (1,).

    array: numpy array, number or nested list.
    dtype: name of a numpy type such as "float32"; None keeps the type of the array, float64 and int64 included.
    """
    tensor = _pending_tensor(array, dtype)
    # An operator reads a pending array that is fused into it in the first precision of the process: after float32,
    # float64 is read as garbage.
    tensor.sync()
    return tensor


def _pending_tensor(array, dtype):
    array = np.asarray(array, dtype=dtype, order="C")
    return _jittor().array(array, dtype=str(array.dtype))  # which copies it


def to_numpy(tensor):
    """Return a numpy array with a copy of the tensor's values, of the same dtype."""
    return tensor.numpy().copy()


def set_threads(n):
    """Compute with n threads."""
    os.environ["OMP_NUM_THREADS"] = str(n)
    ctypes.CDLL("libgomp.so.1").omp_set_num_threads(n)


def set_precision(name):
    """Set the type of parameters and computation from now on: "float32" or "float64".

    Set it before a network is built or loaded. float64 is slow; it is for comparisons. Raises `UserError` for float64
    on a GPU, where it would be wrong.
    """
    if name == "float64" and current.device.kind == devices.CUDA:
        raise found_expected(
            f"--device {current.device.name} with --backend jittor",
            "a computation in float64",
            "float32: Jittor 1.3.11 gives cuDNN and cuBLAS factors in float32 there, also where they expect float64",
            "Give --device cpu.",
        )
    _jittor().flags.auto_convert_64_to_32 = {"float32": 1, "float64": 0}[name]


def precision():
    """Return the type that `set_precision` set: "float32" (the default) or "float64"."""
    return "float32" if _jittor().flags.auto_convert_64_to_32 else "float64"


def set_mixed_precision(name):
    """Accept "no", the type of the parameters, for the networks' convolutions and products; refuse 16 bits.

    Measured on a CPU: a convolution with 288 products per sum is off by 0.39 of its largest value in bfloat16
    (rounding once: 0.004) and takes 50 times as long as in float32, 750 times in float16. On CUDA, Jittor 1.3.11 asks
    cuDNN for sums in the type of the result too (`cudnn_conv_op.cc`). Raises `UserError` for "bf16" and "fp16".
    """
    if name != "no":
        raise found_expected(
            "--mixed_precision",
            f"{name} with --backend jittor",
            "no: Jittor 1.3.11 sums up in 16 bits there, which "
            "makes bf16 wrong, and computes either 50 to 750 times slower on a CPU",
            f"Leave the flag out, or {advice_to_use('pytorch')}",
        )


def use_generic(on):
    """Compute with generic operators from now on, or with the kernels for a CPU.

    Generic operators are those of the framework, which it has for a GPU too. There they are always used; on a CPU
    they let tests reach what a GPU computes. They are slower there.
    """
    current.generic = on


def is_generic():
    """Return whether generic operators compute in place of the kernels for a CPU (`use_generic`)."""
    return current.generic or current.device.kind == devices.CUDA


def set_tf32(on):
    """Accept False; raise `UserError` for True, as Jittor leaves the choice to cuDNN."""
    _refuse_for_pytorch("--tf32", on, "False, as Jittor has no such choice")


def set_compile(on):
    """Accept False; raise `UserError` for True."""
    _refuse_for_pytorch("--compile", on, "False: Jittor compiles its operators in any case")


def _refuse_for_pytorch(flag, on, expected):
    if on:
        raise found_expected(
            flag, "True with --backend jittor", expected, f"Leave the flag out, or {advice_to_use('pytorch')}"
        )


def scalar(value):
    """Return a number as a factor or summand of tensors, in full precision: Jittor would take a Python number as
    float32, even next to float64."""
    return to_tensor(value, dtype=precision())


def synchronize():
    """Wait until all queued computation is done."""
    _jittor().sync_all(True)


def gpu_memory_mib():
    """Return the largest memory that tensors of this process took on its GPU so far, in MiB; None on a CPU.

    Jittor counts what it has taken from CUDA. It keeps what tensors no longer need.
    """
    if current.device.kind == devices.CUDA:
        return _jittor().get_mem_info().total_cuda_used / 2**20
    return None


def no_grad():
    """Return a context in which nothing is recorded for a backward pass."""
    return _jittor().no_grad()


def tracked_copy(tensor):
    """Return a copy of a tensor, whose gradient (`optim.gradients`) is what flows back through this one use of it."""
    copy = tensor.copy()
    return copy.start_grad() if copy.is_stop_grad() else copy


def assign(tensor, array):
    """Set a tensor's values in place from a numpy array of its shape."""
    tensor.update(to_tensor(array, dtype=str(tensor.dtype)))


def versions():
    """Return name -> version of everything that the numbers depend on: Python, numpy and the framework."""
    return {"python": platform.python_version(), "numpy": np.__version__, "jittor": _jittor().__version__}


def _to_original(name, value):
    """Return a buffer in the original's type and shape: Jittor has neither 0-d values nor a 64-bit counter here."""
    return value.astype(np.int64).reshape(()) if name.endswith("num_batches_tracked") else value


def state_arrays(model):
    """Return name -> numpy array of every parameter and buffer, in float32 or float64 as computed.

    Names, order and shapes are the original's, `num_batches_tracked` (int64, ()) included.
    """
    _jittor().sync_all()
    return {name: _to_original(name, to_numpy(value)) for name, value in model.state_dict().items()}


def load_state(model, arrays, where="weights"):
    """Set every parameter and buffer of `model` from name -> numpy array.

    arrays: the names and shapes of `state_arrays`; floating values are cast to `precision()`.
    where:  the file they come from, for the error.
    Raises `UserError` that lists all missing, unexpected and misshapen names.
    """
    from guided_diffusion_core.checkpoints.files import check_state  # not needed to convert tensors

    state = model.state_dict()
    shapes = {name: () if name.endswith("num_batches_tracked") else tuple(value.shape) for name, value in state.items()}
    check_state(shapes, arrays, where)
    for name, value in state.items():
        dtype = precision() if "float" in str(value.dtype) else str(value.dtype)
        # pending, since to wait for one would compute Jittor's random initial values of the others, in vain
        value.update(_pending_tensor(np.reshape(arrays[name], value.shape), dtype))
    _jittor().sync_all()  # pending arrays fused into the first forward pass give an operator that does not compile

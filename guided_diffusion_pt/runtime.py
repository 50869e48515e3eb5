"""The functions of PyTorch that all other modules share: start, conversion, precision, threads, state.

Twin of `guided_diffusion_jt/runtime.py`. Importing this package changes nothing in the process; `start` does.
"""

import ctypes
import os
import platform
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch as th

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system import devices, processes

_PRECISIONS = {"float32": th.float32, "float64": th.float64}
_MIXED = {"no": None, "bf16": th.bfloat16, "fp16": th.float16}


@dataclass
class Current:
    """The state of this backend in a process, next to PyTorch's own settings.

    is_started:      `start` has been called.
    device:          the `Device` that computes.
    mixed_precision: the name that `set_mixed_precision` set.
    compile:         networks are compiled (`set_compile`).
    group:           the processes that compute together; `dist_util.setup_dist` connects them.
    recomputations:  number of running forward passes that repeat an earlier one (`recompute`).
    generic:         the setting of `use_generic`.
    """

    is_started: bool = False
    device: devices.Device = devices.Device()
    mixed_precision: str = "no"
    compile: bool = False
    group: object = field(default_factory=processes.Alone)
    recomputations: int = 0
    generic: bool = False


current = Current()


def start(threads=None, precision="float32", mixed_precision="no", device="cpu", tf32=False, compile=False):
    """Set the allocator of the process to keep large tensors' memory, and apply the settings.

    A further call in the same process only applies its settings.

    threads:         number of threads that compute; None leaves it as it is.
    precision:       "float32" or "float64", for `set_precision`.
    mixed_precision: "no", "bf16" or "fp16", for `set_mixed_precision`.
    device:          "auto", "cpu", "cuda", "cuda:N" or "mps", for `devices.choose`.
    tf32:            for `set_tf32`.
    compile:         for `set_compile`.
    Raises `UserError` for a device that this machine does not have, or that does not work.
    """
    set_device(devices.choose(device, find_devices, try_device))
    set_mixed_precision(mixed_precision)
    set_tf32(tf32)
    set_compile(compile)
    set_precision(precision)
    if threads is not None:
        set_threads(threads)
    if not current.is_started:
        _keep_freed_memory()
        current.is_started = True


def started():
    """Return whether `start` has been called in this process."""
    return current.is_started


def _keep_freed_memory():
    """Let the C library keep freed memory for the next tensors. By default it gives pieces from 32 MiB on, such as a
    tensor of 256x256 pixels, back to the system, which clears them again: a fifth of the time of an evaluation."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc
    if mallopt:
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes
        mallopt(-4, 0)  # M_MMAP_MAX: number of pieces that come from the system on their own


def find_devices():
    """Return the `devices.Found` of this machine."""
    count = th.cuda.device_count() if th.cuda.is_available() else 0
    has_mps = th.backends.mps.is_available()
    missing = ""
    if not count and not has_mps:
        missing = _error_of(th.cuda.init) or "PyTorch counts no GPU"
        if th.backends.cuda.is_built():
            missing += devices.visible()
    return devices.Found(tuple(_gpu_text(number) for number in range(count)), has_mps, missing)


def _gpu_text(number):
    """Return name, memory and compute capability of a GPU in words."""
    found = th.cuda.get_device_properties(number)
    bf16 = ", bf16" if found.major >= 8 else ""  # in its matrix units
    return f"{found.name}, {found.total_memory / 2**30:.1f} GiB, compute capability {found.major}.{found.minor}{bf16}"


def try_device(name):
    """Compute something small on a device of this name, and return the error as a text, "" for success."""

    def compute():
        ones = th.ones(1, 1, 8, 8, device=name)
        found = float(th.nn.functional.conv2d(ones @ ones, ones[:, :, :3, :3]).sum())
        if found != 8 * 9 * 36:  # of 6x6 places of a 3x3 kernel
            raise RuntimeError(f"a convolution of ones gave {found}")

    return _error_of(compute)


def _error_of(function):
    """Call a function and return the first line of its error, "" without one."""
    try:
        function()
    except (AssertionError, RuntimeError, th.cuda.DeferredCudaCallError) as error:  # the first without CUDA built in
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def set_device(device):
    """Make tensors and networks on a `Device` from now on. Those that are there already stay where they are."""
    if device.kind == devices.CUDA:
        th.cuda.set_device(device.name)
    current.device = device


def device():
    """Return the name of the device on which `to_tensor` makes tensors and `build` networks, such as "cuda:0"."""
    return current.device.name


def to_tensor(array, dtype=None):
    """Return a tensor with a copy of the array's values, on the current device. No queued computation is waited for.

    array: numpy array, number or nested list.
    dtype: name of a numpy type such as "float32"; None keeps the type of the array, float64 and int64 included.
           Apple's GPU has no float64: there it becomes float32.
    """
    array = np.array(array, dtype=dtype, order="C")
    if current.device.kind == devices.MPS and array.dtype == np.float64:
        array = array.astype(np.float32)
    tensor = th.from_numpy(array)
    if current.device.kind == devices.CUDA:
        tensor = tensor.pin_memory()  # from where the GPU fetches it when it comes to it
    # Apple's GPU would read the array after it is gone.
    return tensor.to(current.device.name, non_blocking=current.device.kind != devices.MPS)


def to_numpy(tensor):
    """Return a numpy array with a copy of the tensor's values, of the same dtype."""
    return tensor.detach().cpu().numpy().copy()


def set_threads(n):
    """Compute with n threads."""
    th.set_num_threads(n)


def set_precision(name):
    """Set the type of parameters and computation from now on: "float32" or "float64".

    Set it before a network is built or loaded. float64 is slow; it is for comparisons. Raises `UserError` for float64
    on Apple's GPU, which lacks it.
    """
    if name == "float64" and current.device.kind == devices.MPS:
        raise found_expected(
            "--device mps", "a computation in float64", "cpu or cuda, which have it", "Give one of them."
        )
    th.set_default_dtype(_PRECISIONS[name])


def precision():
    """Return the type that `set_precision` set: "float32" (the default) or "float64"."""
    return str(th.get_default_dtype()).removeprefix("torch.")


def set_mixed_precision(name):
    """Set the type in which the networks' convolutions and products compute from now on: "no" (that of the
    parameters), "bf16" or "fp16". A CPU without instructions for 16 bits is slow in them."""
    assert name in _MIXED, name
    current.mixed_precision = name


def mixed_precision():
    """Return the name that `set_mixed_precision` set: "no" by default."""
    return current.mixed_precision


def set_tf32(on):
    """Let NVIDIA's GPUs round the factors of float32 products and convolutions to 10 bits from now on, or not.

    PyTorch's own default rounds those of convolutions.
    """
    th.backends.cuda.matmul.allow_tf32 = on
    th.backends.cudnn.allow_tf32 = on


def set_compile(on):
    """Compile the networks that `build` makes from now on, or not. Raises `UserError` without a C++ compiler."""
    if on and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "c++"))):
        raise found_expected(
            "--compile", "no C++ compiler", "one, which torch.compile needs", "Install g++, or leave the flag out."
        )
    current.compile = on


def autocast(tensor, enabled=True):
    """Return the context in which a network computes as `set_mixed_precision` says, or in float32 if not `enabled`.

    tensor: one on the network's device.
    """
    if _MIXED[current.mixed_precision] is None:
        return nullcontext()
    return th.autocast(tensor.device.type, dtype=_MIXED[current.mixed_precision], enabled=enabled)


def widened(tensor):
    """Return a tensor of 16 bits in float32, and any other as it is."""
    return tensor.float() if tensor.dtype in (th.bfloat16, th.float16) else tensor


def use_generic(on):
    """Compute with generic operators from now on, or with the kernels for a CPU.

    Generic operators are those of the framework, which it has for a GPU too. There they are always used; on a CPU
    they let tests reach what a GPU computes. They are slower there.
    """
    current.generic = on


def is_generic():
    """Return whether generic operators compute on the CPU too, in place of its kernels (`use_generic`).

    A compiled network has no others: the compiler cannot improve the kernels.
    """
    return current.generic or th.compiler.is_compiling()


def scalar(value):
    """Return a number as a factor or summand of tensors, in full precision."""
    return value


def synchronize():
    """Wait until all queued computation is done."""
    waits = {devices.CUDA: th.cuda.synchronize, devices.MPS: th.mps.synchronize}
    if current.device.kind in waits:
        waits[current.device.kind]()


def gpu_memory_mib():
    """Return the largest memory that tensors of this process took on its GPU so far, in MiB; None on a CPU."""
    if current.device.kind == devices.CUDA:
        return th.cuda.max_memory_allocated() / 2**20
    if current.device.kind == devices.MPS:
        return th.mps.driver_allocated_memory() / 2**20  # now: the largest is not counted there
    return None


def no_grad():
    """Return a context in which nothing is recorded for a backward pass."""
    return th.no_grad()


def tracked_copy(tensor):
    """Return a copy of a tensor, whose gradient (`optim.gradients`) is what flows back through this one use of it."""
    copy = tensor.clone()
    return copy if copy.requires_grad else copy.requires_grad_()


def assign(tensor, array):
    """Set a tensor's values in place from a numpy array of its shape."""
    with th.no_grad():
        tensor.copy_(to_tensor(array))


def versions():
    """Return name -> version of everything that the numbers depend on: Python, numpy and the framework."""
    return {"python": platform.python_version(), "numpy": np.__version__, "torch": th.__version__}


def state_arrays(model):
    """Return name -> numpy array of every parameter and buffer, in float32 or float64 as computed.

    Names, order and shapes are the original's, `num_batches_tracked` (int64, ()) included.
    """
    return {name: to_numpy(value) for name, value in model.state_dict().items()}


def load_state(model, arrays, where="weights"):
    """Set every parameter and buffer of `model` from name -> numpy array.

    arrays: the names and shapes of `state_arrays`; floating values are cast to `precision()`.
    where:  the file they come from, for the error.
    Raises `UserError` that lists all missing, unexpected and misshapen names.
    """
    from guided_diffusion_core.checkpoints.files import check_state  # not needed to convert tensors

    state = model.state_dict()
    check_state({name: tuple(value.shape) for name, value in state.items()}, arrays, where)
    for name, value in state.items():
        # state_dict's tensors share the model's memory
        value.copy_(to_tensor(arrays[name]))

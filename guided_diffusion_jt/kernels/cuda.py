"""CUDA in Jittor: what it needs on this machine, and which GPU it takes."""

import ctypes
import os
from pathlib import Path

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.devices import CUDA, Found, parse
from guided_diffusion_jt.kernels import toolkit

_NAME_BYTES = 100  # room for the name of a GPU


def find_devices():
    """Return the `devices.Found` of this machine, by asking NVIDIA's driver; imports no Jittor."""
    gpus = _driver_gpus()
    missing = toolkit.lack(_links()) if gpus else "NVIDIA's driver finds no GPU"
    return Found(() if missing else tuple(gpus), False, missing)


def _links():
    """Return the Path of the folder for links to CUDA's parts."""
    return Path(os.environ.get("JITTOR_HOME") or Path.home()) / ".cache" / "jittor" / "medsegdiff_cuda"


def _driver_gpus():
    """Return name and memory of each GPU that NVIDIA's driver shows this process; none without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for number in range(count.value):
        name = ctypes.create_string_buffer(_NAME_BYTES)
        size = ctypes.c_size_t()
        driver.cuDeviceGetName(name, _NAME_BYTES, number)
        driver.cuDeviceTotalMem_v2(ctypes.byref(size), number)
        found.append(f"{name.value.decode()}, {size.value / 2**30:.1f} GiB")
    return found


def prepare(name):
    """Set the environment in which Jittor, which is imported next, compiles for the GPU of a name such as "cuda:1".

    Raises `UserError` if something that Jittor needs is not installed.
    """
    os.environ["nvcc_path"] = toolkit.prepare(_links())
    for library in ("cutt", "cutlass"):  # Jittor would download them, and does without
        os.environ[f"use_{library}"] = "0"
    # cuDNN otherwise takes TF32 for float32, with 10 bits of the 23, wherever the GPU has it.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    # Jittor reads the number when it is imported. Set later, it would start the process anew, and number 0 where
    # CUDA_VISIBLE_DEVICES names one GPU.
    os.environ.pop("device_id", None)
    number = parse(name)[1]
    if number:
        os.environ["device_id"] = str(number)


def make_exact(flags):
    """Let the imported Jittor compile operators without approximations. flags: `jt.flags`.

    With --use_fast_math, cosines are good between -pi and pi alone (CUDA C++ Programming Guide, "Intrinsic Functions").
    Time steps go to 1000.
    """
    flags.nvcc_flags = flags.nvcc_flags.replace("--use_fast_math", "")


def require(jittor, name):
    """Raise `UserError` unless the imported Jittor has CUDA, and the GPU of this name."""
    if not jittor.has_cuda:
        raise found_expected(
            f"--device {name}",
            "a Jittor that was imported without CUDA",
            "one that was started for a GPU",
            f"Start it with --device {CUDA} in a new process, before anything else imports it.",
        )
    if os.environ.get("device_id", "0") != str(parse(name)[1]):
        raise found_expected(
            f"--device {name}",
            f"a Jittor that has taken cuda:{os.environ.get('device_id', 0)}",
            "one GPU for the whole process",
            "Use another process.",
        )

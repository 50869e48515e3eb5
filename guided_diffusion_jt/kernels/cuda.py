"""CUDA in Jittor: what it needs on this machine, and which GPU it takes."""

import ctypes
import os
import shutil

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.devices import CUDA, Found, parse

_NAME_BYTES = 100  # room for the name of a GPU


def find_devices():
    """Return the `devices.Found` of this machine, by asking NVIDIA's driver; imports no Jittor."""
    gpus = _driver_gpus()
    missing = "NVIDIA's driver finds no GPU" if not gpus else "" if find_compiler() else "no CUDA compiler nvcc"
    return Found(() if missing else tuple(gpus), False, missing)


def find_compiler():
    """Return the path of CUDA's compiler nvcc, with which Jittor builds its operators, or "" without one."""
    return os.environ.get("nvcc_path") or shutil.which("nvcc") or ""


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
    """Let Jittor, which must not be imported yet, take the GPU of a name such as "cuda:1"."""
    os.environ["nvcc_path"] = find_compiler()
    # Jittor reads this when it is imported. Set later, it would start the process anew.
    os.environ["device_id"] = str(parse(name)[1])


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
            f"a Jittor that has taken cuda:{os.environ['device_id']}",
            "one GPU for the whole process",
            "Use another process.",
        )

"""The memory of this process."""

import re
import resource
from pathlib import Path


def peak_memory_mib():
    """Return the largest resident memory of this process so far, in MiB."""
    try:
        # That of getrusage would count the memory of the program that started this one.
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    peak_kib = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_kib / 1024


def memory_figures(gpu_memory_mib):
    """Return the memory of a run for its log or report, name -> MiB: `memory_mib` of the process, and of the GPU.

    gpu_memory_mib: the largest memory on the GPU, which has no figure without one (None).
    """
    figures = {"memory_mib": peak_memory_mib()}
    if gpu_memory_mib is not None:
        figures["gpu_memory_mib"] = gpu_memory_mib
    return figures

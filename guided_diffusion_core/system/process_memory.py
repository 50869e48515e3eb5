"""The memory of this process."""

import resource


def peak_memory_mib():
    """Return the largest resident memory of this process so far, in MiB."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return peak_kib / 1024

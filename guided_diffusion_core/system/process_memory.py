"""The memory of this process."""

import resource


def peak_memory_mib():
    """Largest memory that this process has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

"""State dicts: parameters and buffers by name, as numpy arrays."""

import numpy as np


def is_buffer(name):
    """Return whether a name of a state dict is a running statistic rather than a parameter."""
    return name.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked")


def moved_by_one_ulp(state):
    """Return a copy of a state dict with every non-zero float32 value moved to the next larger float32.

    It measures rounding: no comparison of two frameworks can be more exact than the effect of such a change.
    """
    moved = {}
    for name, value in state.items():
        if value.dtype == np.float32:
            value = np.where(value != 0, np.nextafter(value, np.float32(np.inf)), value)
        moved[name] = value
    return moved

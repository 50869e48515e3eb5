"""Name what is measured: a backend or the original, in one arithmetic."""

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.devices import CPU

MACHINE = "machine"
PEER = "peer"
FLOAT32 = "float32"
TF32 = "tf32"
# Arithmetic -> settings of `runtime.start`, and the largest difference from the reference's outputs, as relative root
# mean square. Rounding errors of float32 are far smaller; TF32 keeps 10 bits of the factors, bfloat16 7.
ARITHMETICS = {
    FLOAT32: ({}, 1e-3),
    TF32: ({"tf32": True}, 0.15),
    "bf16": ({"mixed_precision": "bf16"}, 0.3),
    "fp16": ({"mixed_precision": "fp16"}, 0.15),
}


def name_of(backend, arithmetic):
    """Return the name of an implementation, such as "pytorch" in float32 or "pytorch bf16"."""
    return backend if arithmetic == FLOAT32 else f"{backend} {arithmetic}"


def parts(name):
    """Return (backend, arithmetic) of an implementation's name."""
    backend, _, arithmetic = name.partition(" ")
    return backend, arithmetic or FLOAT32


def arithmetic_of(name, device):
    """Return the arithmetic in which an implementation computes its convolutions on a device.

    The original changes no setting of PyTorch, whose convolutions take TF32 on a GPU.
    """
    return TF32 if name == PEER and device != CPU else parts(name)[1]


def settings_of(name):
    """Return the settings of `runtime.start` for an implementation's arithmetic."""
    return ARITHMETICS[parts(name)[1]][0]


def largest_difference(name, device):
    """Return how far the outputs of an implementation may lie from exact ones, as relative root mean square."""
    return ARITHMETICS[arithmetic_of(name, device)][1]


def chosen(backends, arithmetics, device):
    """Return the names of all combinations. Raises `UserError` for TF32 on a CPU, which has none."""
    if TF32 in arithmetics and device == CPU:
        raise found_expected("--arithmetics", TF32, "one that the CPU has", "Leave it out, or add --device cuda.")
    return [name_of(backend, arithmetic) for backend in backends for arithmetic in arithmetics]

"""The suite of the small U-Net. To try it: python -m parity run all --suite parity.example.suite

The settings of a case are the arguments of both networks.
"""

import importlib

import numpy as np

from parity.protocol import Case

UNET = {"in_channels": 3, "width": 4, "out_channels": 2}
CASES = (
    Case("weights/example", "parameters and buffers as they come back, bit by bit", UNET),
    Case("forward/example", "every module's output, training mode", UNET),
    Case("gradients/example", "gradient of every parameter and module input", UNET),
)


def weights(case):
    """Return name -> array of every parameter and buffer, under PyTorch's names: random, without zeros."""
    inner = case.settings["in_channels"]
    width = case.settings["width"]
    outer = case.settings["out_channels"]
    generator = np.random.default_rng(0)
    arrays = {}
    for name, (before, after) in {
        "down1": (inner, width),
        "down2": (width, width),
        "deep1": (width, 2 * width),
        "deep2": (2 * width, 2 * width),
        "join1": (3 * width, width),
        "join2": (width, width),
    }.items():
        arrays |= {
            f"{name}.0.weight": generator.standard_normal((after, before, 3, 3)) / np.sqrt(9 * before),
            f"{name}.1.weight": generator.uniform(0.8, 1.2, after),
            f"{name}.1.bias": generator.uniform(0.1, 0.3, after),
            f"{name}.1.running_mean": generator.uniform(0.1, 0.3, after),
            f"{name}.1.running_var": generator.uniform(0.8, 1.2, after),
            f"{name}.1.num_batches_tracked": np.array(3),
        }
    arrays["head.weight"] = generator.standard_normal((outer, width, 1, 1)) / np.sqrt(width)
    arrays["head.bias"] = generator.uniform(0.1, 0.3, outer)
    return {name: value.astype(np.float32 if value.dtype.kind == "f" else np.int64) for name, value in arrays.items()}


def inputs(case):
    """Return the input x (2, in_channels, 16, 16)."""
    shape = (2, case.settings["in_channels"], 16, 16)
    return {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}


def open_port(backend):
    """Return the `Port` of one backend."""
    return importlib.import_module(f"parity.example.{backend}_unet").UNetPort()

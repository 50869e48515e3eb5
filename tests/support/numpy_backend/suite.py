"""The suite of the perceptron, in PyTorch and in numpy, which it registers as a backend."""

import importlib

import numpy as np

from guided_diffusion_core.backends import Backend, register
from parity.protocol import Case

register(Backend("numpy", "support.numpy_backend", "numpy", "numpy", launcher="mpirun", forward="compute"))

PERCEPTRON = {"inner": 5, "width": 7, "outer": 3}
CASES = (
    Case("weights/perceptron", "parameters as they come back, bit by bit", PERCEPTRON),
    Case("forward/perceptron", "every layer's output", PERCEPTRON),
)
_PORTS = {"pytorch": "support.numpy_backend.reference", "numpy": "support.numpy_backend.network"}


def weights(case):
    generator = np.random.default_rng(0)
    sizes = (case.settings["inner"], case.settings["width"], case.settings["outer"])
    arrays = {}
    for name, before, after in zip(("hidden", "out"), sizes, sizes[1:]):
        arrays[f"{name}.weight"] = generator.standard_normal((after, before)).astype(np.float32)
        arrays[f"{name}.bias"] = generator.standard_normal(after).astype(np.float32)
    return arrays


def inputs(case):
    return {"x": np.random.default_rng(1).standard_normal((4, case.settings["inner"])).astype(np.float32)}


def open_port(backend):
    return importlib.import_module(_PORTS[backend]).PerceptronPort()

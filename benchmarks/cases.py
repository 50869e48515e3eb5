"""The cases to measure, and the network, weights and inputs, which are the same for all implementations."""

import itertools
from dataclasses import dataclass

import numpy as np

from guided_diffusion_core.config import resolve
from guided_diffusion_core.networks.registry import family_named, state_shapes

# Kind of measurement -> one line about it.
WHAT = {
    "evaluation": "one evaluation of the network, no gradients",
    "step": "one evaluation within sampling; results that depend only on the image are reused where that is supported",
    "training": "one training step: loss, gradients, AdamW, moving average",
    "cases": "whole cases: image file in, fused mask file out, an ensemble of 5",
    "start": "a new process until its first training step is done",
    "loading": "image files to training batches",
    "scaling": "whole cases as in cases, while one quantity grows and the others are fixed",
}
VERSIONS = ("new", "1")  # of MedSegDiff's network; others are measured by the name of their family
BATCHES = {64: 4}  # size in pixels -> batch of evaluation, step and training; other sizes: 1
STEPS = 5  # of the sampler in whole cases, as in the preset `fast`
ENSEMBLE = 5  # members in whole cases, as in the preset `fast`
IMAGE_CHANNELS = 3
# Quantities of "scaling" and their values. While one grows, the others have the values of `SCALING_BASE`.
SCALING = {
    "size": (32, 64, 128, 256),
    "width": (32, 64, 128),
    "steps": (1, 5, 20, 50),
    "members": (1, 5, 20),
    "batch": (1, 4, 16),
    "processes": (1, 2),
}
SCALING_BASE = {"size": 64, "width": 32, "steps": STEPS, "members": ENSEMBLE, "batch": 1, "processes": 1}


@dataclass(frozen=True)
class Case:
    """One measurement of every implementation.

    what:           key of `WHAT`.
    version:        of MedSegDiff's network, or the name of another network.
    size:           side of the input, in pixels.
    batch:          examples per batch. width: base channels.
    steps, members: of the sampler and of the ensemble, in whole cases.
    processes:      number of processes that run at the same time, each with its own batch.
    """

    what: str
    version: str
    size: int
    batch: int
    width: int
    steps: int = STEPS
    members: int = ENSEMBLE
    processes: int = 1

    @property
    def name(self):
        """The name, such as "training/new-64px-batch4-width128"."""
        name = f"{self.what}/{self.version}-{self.size}px-batch{self.batch}-width{self.width}"
        if self.what == "scaling":
            name += f"-steps{self.steps}-members{self.members}-processes{self.processes}"
        return name


def make_cases(what, versions, sizes, width, batch=0):
    """Return the cases of all combinations; for "scaling", those of `scaling_cases`.

    batch: 0 takes the batch of `BATCHES`.
    """
    kinds = [kind for kind in what if kind != "scaling"]
    cases = [
        Case(kind, version, size, batch or BATCHES.get(size, 1), width)
        for kind, version, size in itertools.product(kinds, versions, sizes)
    ]
    if "scaling" in what:
        cases += scaling_cases(versions)
    return cases


def scaling_cases(versions):
    """Return the cases that differ from `SCALING_BASE` in one quantity, and the base itself once."""
    cases = []
    for version in versions:
        for name, values in SCALING.items():
            cases += [Case("scaling", version, **{**SCALING_BASE, name: value}) for value in values]
    return list(dict.fromkeys(cases))  # each once: every quantity contains the base


# The flags of the original's README for its network, and those of all networks.
ORIGINAL = {"num_res_blocks": 2, "num_heads": 1, "use_scale_shift_norm": False, "attention_resolutions": "16"}
COMMON = {
    "learn_sigma": True,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "rescale_learned_sigmas": False,
    "rescale_timesteps": False,
    "in_ch": IMAGE_CHANNELS + 1,
}


def settings(case):
    """Return the settings of a case's network and process, by the names of their flags."""
    common = {"image_size": case.size, **COMMON}
    if case.version in VERSIONS:
        return {"num_channels": case.width, "version": case.version, **ORIGINAL, **common}
    width = f"{case.version}.width"
    own = {width: case.width} if width in family_named(case.version).flags() else {}
    return {"network": case.version, **common, **own}


def network(case):
    """Return the settings of a case's network, a `NetworkConfig`."""
    return resolve(settings(case)).model


def weights(case):
    """Return name -> array of every parameter and buffer: random, without the zeros of a new network."""
    generator = np.random.default_rng(0)
    return {name: _weight(name, shape, generator) for name, shape in state_shapes(network(case)).items()}


def _weight(name, shape, generator):
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    values = generator.standard_normal(shape, np.float32)
    if name.endswith("complex_weight"):
        return values
    if len(shape) > 1:
        return values / np.float32(np.sqrt(np.prod(shape[1:])))
    return np.float32(0.1) * values + np.float32(not name.endswith(("bias", "running_mean")))


def inputs(case):
    """Return the inputs of a case as arrays by name.

    x (N, C + 1, S, S): image and noisy mask. mask, noise (N, 1, S, S). t (N,): time steps.
    """
    generator = np.random.default_rng(1)
    mask_shape = (case.batch, 1, case.size, case.size)
    return {
        "x": generator.standard_normal((case.batch, IMAGE_CHANNELS + 1, case.size, case.size), np.float32),
        "mask": (generator.random(mask_shape) > 0.7).astype(np.float32),
        "noise": generator.standard_normal(mask_shape, np.float32),
        "t": np.linspace(30, 970, case.batch).astype(np.int64),
    }

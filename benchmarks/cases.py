"""What is measured: cases, and the network, weights and inputs that all implementations get alike."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from guided_diffusion_core.config import ModelConfig
from guided_diffusion_core.networks.registry import state_shapes

# What is measured -> one line about it.
WHAT = {
    "evaluation": "one evaluation of the network, no gradients",
    "step": "one step's evaluation in sampling; what depends on the image alone is known, where that is kept",
    "training": "one training step: loss, gradients, AdamW, moving average",
    "cases": "whole cases: image file in, fused mask file out, an ensemble of 5",
    "start": "a new process until its first training step is done",
    "loading": "image files to training batches",
    "scaling": "whole cases as in cases, while one quantity grows and the others stay",
}
BATCHES = {64: 4}  # of evaluation, step and training by size in pixels; others: 1
# of whole cases: the preset `fast`
STEPS = 5
ENSEMBLE = 5
IMAGE_CHANNELS = 3
# What grows in "scaling", and its values; what does not has the value of `SCALING_BASE`.
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
    """One measurement, of every implementation.

    what:      key of `WHAT`. version: of the network. size: in pixels.
    batch:     examples at once. width: base channels.
    steps:     of the sampler, and members of the ensemble, in whole cases.
    processes: that work at the same time, each on a batch of its own.
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
        """Such as "training/new-64px-batch4-width128"."""
        name = f"{self.what}/{self.version}-{self.size}px-batch{self.batch}-width{self.width}"
        if self.what == "scaling":
            name += f"-steps{self.steps}-members{self.members}-processes{self.processes}"
        return name


def make_cases(what, versions, sizes, width, batch=0):
    """The cases of all combinations, and for "scaling" those of `SCALING`. batch: 0 takes that of `BATCHES`."""
    cases = [
        Case(kind, version, size, batch or BATCHES.get(size, 1), width)
        for kind in what
        if kind != "scaling"
        for version in versions
        for size in sizes
    ]
    return cases + (scaling_cases(versions) if "scaling" in what else [])


def scaling_cases(versions):
    """The cases in which one quantity has another value than in `SCALING_BASE`, and the base itself once."""
    grown = [{**SCALING_BASE, name: value} for name, values in SCALING.items() for value in values]
    unlike = list({tuple(settings.items()): settings for settings in grown}.values())
    return [Case("scaling", version, **settings) for version in versions for settings in unlike]


def settings(case):
    """The flags of the original's README (`--num_heads 1 --learn_sigma True ...`) for a case."""
    return {
        "image_size": case.size,
        "num_channels": case.width,
        "version": case.version,
        "num_res_blocks": 2,
        "num_heads": 1,
        "learn_sigma": True,
        "use_scale_shift_norm": False,
        "attention_resolutions": "16",
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "rescale_learned_sigmas": False,
        "rescale_timesteps": False,
        "in_ch": IMAGE_CHANNELS + 1,
    }


def network(case):
    """Return the settings of a case's network, a `ModelConfig`."""
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    return ModelConfig(**{name: value for name, value in settings(case).items() if name in names})


def weights(case):
    """Name -> array of every parameter and buffer: random, without the zeros at the start of a training."""
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
    """Arrays by name: x (N, C + 1, S, S), images and noised mask; mask, noise (N, 1, S, S); t (N,) steps."""
    generator = np.random.default_rng(1)
    mask_shape = (case.batch, 1, case.size, case.size)
    return {
        "x": generator.standard_normal((case.batch, IMAGE_CHANNELS + 1, case.size, case.size), np.float32),
        "mask": (generator.random(mask_shape) > 0.7).astype(np.float32),
        "noise": generator.standard_normal(mask_shape, np.float32),
        "t": np.linspace(30, 970, case.batch).astype(np.int64),
    }

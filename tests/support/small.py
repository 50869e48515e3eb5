"""A small network (32 px, width 32) and data without files, for the tests of training and sampling."""

import os
from contextlib import contextmanager

import numpy as np
from support.backends import BACKENDS, Backend

from guided_diffusion_core.config import resolve
from guided_diffusion_core.data.dataset import Case, Example

NETWORK = {
    "image_size": 32,
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_heads": 2,
    "in_ch": 4,
    "channel_mult": "1,2",
    "attention_resolutions": "16",
    "use_scale_shift_norm": False,
    "learn_sigma": True,
}
TRAINING = {"batch_size": 2, "max_steps": 10, "dropout": 0.1, "seed": 3}


# The same in version 1: three poolings, two of them with an FF-Parser, of 16 and 8 px.
NETWORK_V1 = {**NETWORK, "version": "1", "channel_mult": "1,1,2,2"}


# A small network of each family, with dropout; the example is registered by the fixture `example`.
FAMILIES = {
    "medsegdiff_new": {**NETWORK, "highway_dropout": 0.5, "dropout": 0.1},
    "medsegdiff_v1": {**NETWORK_V1, "highway_dropout": 0.5, "dropout": 0.1},
    "paper": {
        "network": "paper",
        "image_size": 32,
        "in_ch": 4,
        **{"paper.dim": 8, "paper.dim_mults": "1,2", "paper.heads": 2, "paper.dim_head": 4},
        **{"paper.ff_parser": "dynamic", "paper.vit_heads": 2, "paper.vit_dim_head": 4, "paper.vit_depth": 1},
    },
    "example": {"network": "example", "image_size": 32, "in_ch": 4, "example.dropout": 0.1},
}


def small_config(**settings):
    """Return the `Config` of a short training of the small network, with some settings changed."""
    preset = settings.pop("preset", None)
    return resolve({**NETWORK, **TRAINING, **settings}, preset=preset)


class RandomDataset:
    """A `Dataset` of uniform noise and random masks.

    length:      number of examples.
    in_channels: C of the images (C, size, size).
    size:        height and width.
    broken:      error that the last example raises; None for none.
    labels:      names of the masks' channels.
    """

    normalisation = "none"

    def __init__(self, length=6, in_channels=3, size=32, broken=None, labels=("mask",)):
        generator = np.random.default_rng(5)
        self.in_channels = in_channels
        self.size = size
        self.broken = broken
        self.images = generator.uniform(size=(length, in_channels, size, size)).astype(np.float32)
        self.labels = tuple(labels)
        self.masks = (generator.uniform(size=(length, len(labels), size, size)) > 0.7).astype(np.float32)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if self.broken is not None and index == len(self) - 1:
            raise self.broken
        return Example(self.images[index], self.masks[index], f"case{index}")

    def cases(self):
        return [Case(f"case{index}", (index,), (self.size, self.size)) for index in range(len(self))]


def random_state(shapes, seed=0):
    """Return a state dict in float64 without zeros, so that every parameter gets a gradient."""
    generator = np.random.default_rng(seed)

    def value(name, shape):
        if name.endswith("num_batches_tracked"):
            return np.zeros(shape, np.int64)
        if name.endswith("complex_weight"):  # factors of frequencies: about one
            return generator.standard_normal(shape)
        if len(shape) > 1:
            return generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        centre = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
        return centre + generator.uniform(0.05, 0.2, shape)

    return {name: value(name, shape) for name, shape in shapes.items()}


@contextmanager
def computing(precision, *backends):
    """Let backends compute in a precision, and with one thread, since the networks are small.

    backends: instances of `Backend`; all if none is given.
    """
    runtimes = [backend.module("runtime") for backend in backends or map(Backend, BACKENDS)]
    threads = os.environ.get("OMP_NUM_THREADS")
    for runtime in runtimes:
        runtime.set_precision(precision)
        runtime.set_threads(1)
    try:
        yield
    finally:
        for runtime in runtimes:
            runtime.set_precision("float32")
            runtime.set_threads(int(threads or len(os.sched_getaffinity(0))))
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)

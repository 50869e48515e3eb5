"""Fixtures of the conversion: a network's weights, a checkpoint, the command."""

import functools

import numpy as np
import pytest
from support.conversions import CONFIG
from support.small import random_state

from guided_diffusion_core.conversion import convert
from guided_diffusion_core.networks.registry import state_shapes


@pytest.fixture(scope="module")
def weights():
    state = random_state(state_shapes(CONFIG.model))
    return {name: value if value.dtype == np.int64 else value.astype(np.float32) for name, value in state.items()}


@pytest.fixture
def source(weights):
    return convert.Checkpoint(weights, CONFIG, "ema_0.9999", 700, ())


@pytest.fixture
def convert_checkpoint(command):
    """Return a function of flags that runs `convert_checkpoint` here and returns (exit code, stdout, stderr)."""
    return functools.partial(command, "convert_checkpoint")

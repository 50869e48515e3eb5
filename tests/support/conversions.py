"""What the tests of conversion share: a network's weights, archives, and the command in this process."""
import io
import runpy
import sys
import zipfile

import numpy as np
import pytest
from conftest import BACKENDS, ROOT
from support.small import random_state, small_config

from guided_diffusion_core.conversion import convert
from guided_diffusion_core.networks.medsegdiff.state_shapes import state_shapes
from guided_diffusion_core.networks.medsegdiff.plan import make_plan

FORMATS = (".pt", ".pth", ".pkl", ".safetensors")
CONFIG = small_config(normalisation="RGB / 255", data_name="ISIC")
GIVEN = {"image_size": 32, "num_heads": 2, "dropout": 0.1}  # what weights do not show
FLAGS = [text for name, value in GIVEN.items() for text in (f"--{name}", str(value))]

needs_pytorch = pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
needs_jittor = pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor is not among MEDSEGDIFF_BACKENDS")


@pytest.fixture(scope="module")
def weights():
    state = random_state(state_shapes(make_plan(CONFIG.model)))
    return {name: value if value.dtype == np.int64 else value.astype(np.float32) for name, value in state.items()}


@pytest.fixture
def source(weights):
    return convert.Checkpoint(weights, CONFIG, "ema_0.9999", 700, ())


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command in this process: function of its arguments, returns (exit code, stdout, stderr)."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint", *map(str, arguments)])
        capsys.readouterr()
        try:
            runpy.run_path(str(ROOT / "scripts" / "convert_checkpoint.py"), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return (code, *capsys.readouterr())
    return run


def assert_bitwise(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def in_order(arrays):
    return dict(sorted(arrays.items()))


def without_counters(weights):
    return {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}


def zipped(entries, compression=zipfile.ZIP_STORED):
    """The bytes of an archive of name -> content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unzipped(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}

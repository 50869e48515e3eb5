"""Settings, comparisons and archives for the tests of conversion."""

import io
import zipfile

import pytest
from support.backends import BACKENDS
from support.small import small_config

FORMATS = (".pt", ".pth", ".pkl", ".safetensors")
CONFIG = small_config(normalisation="RGB / 255", data_name="ISIC")
GIVEN = {"image_size": 32, "num_heads": 2, "dropout": 0.1}  # settings that the weights do not show
FLAGS = [text for name, value in GIVEN.items() for text in (f"--{name}", str(value))]

needs_pytorch = pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
needs_jittor = pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor is not among MEDSEGDIFF_BACKENDS")


def assert_bitwise(found, expected):
    """Assert that two dicts of arrays have the same order, names, types, shapes and bits."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def in_order(arrays):
    return dict(sorted(arrays.items()))


def without_counters(weights):
    return {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}


def zipped(entries, compression=zipfile.ZIP_STORED):
    """Return the bytes of an archive of name -> content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unzipped(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}

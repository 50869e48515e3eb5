"""The rules by which the golden values of `tests/golden` were made: weights by name, inputs by seed, samples."""

import json
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def golden_weight(name, shape):
    """Return the weight that the original was given for a name of its state dict."""
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    values = generator.standard_normal(shape)
    if name.endswith((".g", "ff_parser_attn_map")):
        values = 1 + 0.1 * values
    elif name.endswith((".b", "pos_emb")) or name.endswith("running_mean"):
        values = 0.1 * values
    elif name.endswith("running_var"):
        values = 1 + 0.5 * np.abs(values)
    elif name.endswith("complex_weight"):
        values = 0.1 * values
    elif len(shape) >= 2:
        values = values / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("bias"):
        values = 0.1 * values
    else:
        values = 1 + 0.1 * values
    return values.astype(np.float32)


def samples(array, k):
    """Return the k flattened values of a tensor that a golden file keeps."""
    flat = np.asarray(array).reshape(-1)
    return flat[np.unique(np.linspace(0, flat.size - 1, k).round().astype(np.int64))]


def settings(golden_config, names):
    """Return those settings of the original that this software knows, by the given names."""
    return {name: value for name, value in json.loads(str(golden_config)).items() if name in names}


def rms(array):
    """Return the root mean square, in float64."""
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))


def relative_rms(found, expected, scale=None):
    """Return the RMS of the difference divided by the RMS of the expected values, or by `scale`."""
    difference = np.asarray(found, np.float64) - np.asarray(expected, np.float64)
    return rms(difference) / (rms(expected) if scale is None else scale)

"""Conversion of checkpoints between formats, bitwise and without a framework.

`.pt` and `.pth` are the original's formats (savedmodel*.pt, emasavedmodel_*.pt), `.pkl` is Jittor's and
`.safetensors` is the format of this software. Only the last one holds a configuration; for the others it
is inferred from names and shapes (`infer_config.py`).
"""

import dataclasses
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import PurePath

import blobfile as bf
import numpy as np

from guided_diffusion_core import checkpoints
from guided_diffusion_core import config as configuration
from guided_diffusion_core.config import Config
from guided_diffusion_core.conversion.infer_config import infer
from guided_diffusion_core.conversion.pickles import read_pkl, write_pkl
from guided_diffusion_core.conversion.torch_files import read_pt, write_pt
from guided_diffusion_core.errors import found_expected, join_names
from guided_diffusion_core.networks import registry
from guided_diffusion_core.system.files import READ_ERRORS, read_bytes, write_atomic

PREFIX = "module."  # of the names if a network was saved inside DistributedDataParallel
COUNTER = "num_batches_tracked"  # end of the name of a batch norm's counter
FORMATS = (".pt", ".pth", ".pkl", ".safetensors")

# The original's file names: savedmodel050000, emasavedmodel_0.9999_050000.
_ORIGINAL_NAME = re.compile(r"(ema)?savedmodel(?(1)_(?P<rate>[\d.]+)_)(?P<step>\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """One network from a file.

    arrays:  name -> numpy array, exactly those of the configuration's network, in its order.
    network: `checkpoints.NETWORK` or `checkpoints.average_name(rate)`. step: optimizer steps, 0 if unknown.
    notes:   sentences for the console about changes and assumptions.
    """

    arrays: dict
    config: Config
    network: str
    step: int
    notes: tuple


def read(path, given=None):
    """Read a file of any of the formats and return its `Checkpoint`.

    given: settings that the file does not show, by name: of the network, the diffusion and the data, and
           "normalisation".
    Raises `UserError` for a broken or hostile file, for another network (all missing, unexpected and
    misshapen names together) and for a given setting that contradicts the file.
    """
    given = given or {}
    content = read_bytes(path)
    suffix = _format(path, "IN")
    if suffix == ".safetensors":
        raw, metadata = checkpoints.from_bytes(content, path)
    else:
        reader = read_pkl if suffix == ".pkl" else read_pt
        raw = reader(content, path)
        metadata = {}
    arrays, notes = _normalised(raw, path)
    if metadata:
        config, name, step = _own_metadata(metadata, path)
        _check_agrees(config, given, path)
    else:
        shapes = {name: value.shape for name, value in arrays.items()}
        config, assumed = infer(shapes, given, path)
        notes += _inference_notes(config, assumed)
        name, step = _network_and_step(path)
    expected = registry.state_shapes(config.model)
    notes += _fill_counters(arrays, expected)
    arrays = registry.repaired(config.model, arrays, path)
    checkpoints.check_state(expected, arrays, path)
    _check_types(arrays, path)
    return Checkpoint({key: arrays[key] for key in expected}, config, name, step, tuple(notes))


def write(path, source):
    """Write a `Checkpoint` in the format that the ending of the path names.

    Raises `UserError` if the file already exists or the folder cannot be written.
    """
    check_target(path)
    writers = {
        ".pt": write_pt,
        ".pth": write_pt,
        ".pkl": write_pkl,
        ".safetensors": lambda arrays: checkpoints.to_bytes(source.step, source.config, source.network, arrays),
    }
    write_atomic(path, writers[_format(path, "OUT")](source.arrays))


def check_target(path):
    """Raise `UserError` for a path that `write` cannot use, before any work is done."""
    _format(path, "OUT")
    try:
        exists = bf.exists(str(path))
    except READ_ERRORS as error:
        raise found_expected(path, f"no usable path ({error})", "a path for a new file", "Check the path.") from error
    if exists:
        raise found_expected(path, "an existing file", "a path for a new file", "Remove it or choose another name.")


def differing(first, second):
    """Return the names of the arrays that differ between two `Checkpoint`s in any bit, or that only one has."""

    def same(name):
        one = first.arrays.get(name)
        other = second.arrays.get(name)
        if one is None or other is None:
            return False
        same_type = one.dtype == other.dtype and one.shape == other.shape
        return same_type and one.tobytes() == other.tobytes()

    return [name for name in {**first.arrays, **second.arrays} if not same(name)]


def flags(config):
    """Return, as one text, the command-line flags for what a `.pt` or `.pkl` of this network does not hold."""
    parts = [f"--normalisation {shlex.quote(config.normalisation)}"]
    if registry.family_of(config.model).infer is None:
        parts.append(f"--network {config.network}")
    usual = dataclasses.replace(configuration.Config(), model=type(config.model)())
    for name in configuration.setting_names("model", "diffusion", model=config.model):
        value = configuration.setting(config, name)
        if value != configuration.setting(usual, name):
            parts.append(f"--{name} {shlex.quote(str(value))}")
    return " ".join(parts)


def _format(path, where):
    suffix = PurePath(str(path)).suffix
    if suffix not in FORMATS:
        raise found_expected(
            f"{where} {path}",
            f"the ending {suffix!r}",
            ".pt, .pth, .pkl or .safetensors",
            "The ending names the format.",
        )
    return suffix


def _own_metadata(metadata, path):
    """Return (`Config`, network, step) of a file that this software has written."""
    try:
        config = configuration.from_dict(json.loads(metadata["config"]), where=path)
        return config, metadata["network"], int(metadata["step"])
    except (KeyError, ValueError) as error:
        raise found_expected(
            path, f"metadata that cannot be read ({error})", "a file of medsegdiff train", "Copy it again."
        ) from error


def _network_and_step(path):
    """Return (network, step) according to the original's file names; step 0 for any other name."""
    found = _ORIGINAL_NAME.fullmatch(PurePath(str(path)).stem)
    if not found:
        return checkpoints.NETWORK, 0
    network = checkpoints.average_name(found["rate"]) if found["rate"] else checkpoints.NETWORK
    return network, int(found["step"])


def _normalised(raw, path):
    """Return (arrays under the names and in the types of a network, notes)."""
    arrays = {}
    notes = []
    for name, value in raw.items():
        bare = name
        while bare.startswith(PREFIX):
            bare = bare.removeprefix(PREFIX)
        if bare in arrays:
            raise found_expected(
                path, f"{bare} with and without the prefix {PREFIX}", "each name once", "Save the network again."
            )
        arrays[bare] = value
    if any(name.startswith(PREFIX) for name in raw):
        notes.append(f"The prefix {PREFIX} was removed.")
    half = [name for name, value in arrays.items() if value.dtype == np.float16]
    if half:
        notes.append(f"{len(half)} tensors were widened from float16 to float32, which is exact.")
        arrays |= {name: arrays[name].astype(np.float32) for name in half}
    for name, value in arrays.items():
        if name.endswith(COUNTER) and value.dtype.kind == "i" and value.size == 1:
            # Jittor saves a counter as int32 of shape (1,)
            arrays[name] = value.astype(np.int64).reshape(())
    return arrays, notes


def _fill_counters(arrays, expected):
    """Add the batch norms' counters that a file lacks (Jittor's files lack them), and return the notes."""
    missing = [name for name in expected if name.endswith(COUNTER) and name not in arrays]
    if not missing:
        return []
    arrays |= {name: np.zeros((), np.int64) for name in missing}
    return [f"{len(missing)} missing {COUNTER} were set to 0; no computation uses them."]


def _check_types(arrays, path):
    wrong = []
    for name, value in arrays.items():
        allowed = (np.int64,) if name.endswith(COUNTER) else (np.float32, np.float64)
        if value.dtype not in allowed:
            wrong.append(f"{name} {value.dtype}")
    if wrong:
        raise found_expected(
            path,
            f"{len(wrong)} tensors of another type: {join_names(wrong)}",
            f"float32 or float64, and int64 for {COUNTER}",
            "Save the network again.",
        )


def _check_agrees(config, given, path):
    """Raise `UserError` if a given setting contradicts the configuration in a file."""
    for name, value in given.items():
        inside = configuration.setting(config, name)
        if value != inside:
            raise found_expected(f"--{name}", repr(value), f"{inside!r}, as in {path}", "Leave the flag out.")


def _inference_notes(config, assumed):
    """Return the notes about a configuration that was not in the file."""

    def values(names):
        parts = []
        for name in names:
            value = configuration.setting(config, name)
            shown = "empty" if value == "" else value
            parts.append(f"{name} {shown}")
        return ", ".join(parts)

    inferred = [name for name in configuration.setting_names("model", model=config.model) if name not in assumed]
    return [
        f"From names and shapes or flags: {values(inferred)}.",
        "Not visible in the weights, taken from the original's defaults (give a flag where yours differs): "
        f"{values(assumed)}.",
    ]

"""Conversion of checkpoints between formats, bitwise and without a framework.

`.pt` and `.pth` are the original's formats (savedmodel*.pt, emasavedmodel_*.pt), `.pkl` is Jittor's and
`.safetensors` is the format of this software. Only the last one holds a configuration; for the others it
is inferred from names and shapes (`infer_config.py`).
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import PurePath

import blobfile as bf
import numpy as np

from guided_diffusion_core import checkpoints
from guided_diffusion_core import config as configuration
from guided_diffusion_core.config import Config
from guided_diffusion_core.conversion.infer_config import infer
from guided_diffusion_core.conversion.jittor_files import read_pkl, write_pkl
from guided_diffusion_core.conversion.names import COUNTER, network_and_step, normalised
from guided_diffusion_core.conversion.safetensors_files import read_safetensors
from guided_diffusion_core.conversion.torch_files import LEGACY_START, read_pt, write_pt
from guided_diffusion_core.errors import command_text, found_expected, join_names
from guided_diffusion_core.networks import registry
from guided_diffusion_core.system.files import READ_ERRORS, read_bytes, write_atomic

FORMATS = (".pt", ".pth", ".pkl", ".safetensors")
_LONGEST_HEADER = 100_000_000  # bytes of the header of a safetensors file, by its library

# Files that are something else: how they begin, and what to do.
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS", "Run git lfs pull, or download the file itself."),
    (b"<", "a web page", "Download the file itself."),
    (b"\x1f\x8b", "a file that gzip has compressed", "Unpack it."),
    (b"\x89HDF", "a file of HDF5, such as Keras writes", "Save the network's state_dict() in PyTorch."),
)


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


def read(path, given=None, key=""):
    """Read a file of any of the formats and return its `Checkpoint`.

    The content shows the format, whatever the ending says.

    given: settings that the file does not show, by name: of the network, the diffusion and the data, and
           "normalisation".
    key:   which one of several state dicts to take, by its names in the file joined by "/".
    Raises `UserError` for a broken or hostile file, for another network (all missing, unexpected and
    misshapen names together) and for a given setting that contradicts the file.
    """
    given = given or {}
    ending = _format(path, "IN")
    raw, metadata, notes = _read(read_bytes(path), ending, path, key)
    arrays, changes = normalised(raw, path)
    notes += changes
    if metadata:
        config, name, step = _own_metadata(metadata, path)
        _check_agrees(config, given, path)
    else:
        shapes = {name: value.shape for name, value in arrays.items()}
        config, assumed = infer(shapes, given, path)
        notes += _inference_notes(config, assumed)
        name, step = network_and_step(path)
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
    words = ["--normalisation", config.normalisation]
    if registry.family_of(config.model).infer is None:
        words += ["--network", config.network]
    usual = dataclasses.replace(configuration.Config(), model=type(config.model)())
    for name in configuration.setting_names("model", "diffusion", model=config.model):
        value = configuration.setting(config, name)
        if value != configuration.setting(usual, name):
            words += [f"--{name}", value]
    return command_text(*words)


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


def _read(content, ending, path, key):
    """Return (`StateDict`, metadata, notes) of a file's content, whose format may be another than its ending says."""
    for start, found, advice in _OTHERS:
        if content[:64].lstrip().startswith(start):
            raise found_expected(path, found, "a checkpoint", advice)
    kind = _kind(content) or ending
    metadata = {}
    if kind == ".safetensors":
        if key:
            raise found_expected("--state", repr(key), "none: a .safetensors file has one state dict", "Leave it out.")
        raw, metadata = read_safetensors(content, path)
    else:
        raw = (read_pkl if kind == ".pkl" else read_pt)(content, path, key)
    notes = list(raw.notes)
    if kind != (".pt" if ending == ".pth" else ending):
        notes.insert(0, f"The content is that of a {kind} file, which is read as such.")
    return raw, metadata, notes


def _kind(content):
    """Return the ending of the format that a file's content shows; None if it shows none."""
    if content.startswith((b"PK\x03\x04", LEGACY_START)):
        return ".pt"
    header = int.from_bytes(content[:8], "little")
    if content[8:9] == b"{" and header < _LONGEST_HEADER:
        return ".safetensors"
    # the first instruction of a pickle since protocol 2
    return ".pkl" if content.startswith(b"\x80") else None


def _own_metadata(metadata, path):
    """Return (`Config`, network, step) of a file that this software has written."""
    try:
        config = configuration.from_checkpoint(json.loads(metadata["config"]), path)
        return config, metadata["network"], int(metadata["step"])
    except (KeyError, ValueError, RecursionError) as error:
        raise found_expected(
            path, f"metadata that cannot be read ({error})", "a file of medsegdiff train", "Copy it again."
        ) from error


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

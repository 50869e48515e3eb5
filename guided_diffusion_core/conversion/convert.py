"""Checkpoints from one format to another, bitwise and without a framework.

`.pt` and `.pth` are the original's (savedmodel*.pt, emasavedmodel_*.pt), `.pkl` is Jittor's,
`.safetensors` this software's own, which alone carries a configuration. In the two others it is
read from names and shapes (`infer_config.py`).
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
from guided_diffusion_core.networks.medsegdiff.plan import make_plan
from guided_diffusion_core.networks.medsegdiff.state_shapes import state_shapes
from guided_diffusion_core.system.files import READ_ERRORS, read_bytes, write_atomic

PREFIX = "module."  # of a network saved inside DistributedDataParallel
COUNTER = "num_batches_tracked"

# The original's file names: savedmodel050000, emasavedmodel_0.9999_050000.
_ORIGINAL_NAME = re.compile(r"(ema)?savedmodel(?(1)_(?P<rate>[\d.]+)_)(?P<step>\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """One network out of a file.

    arrays:  name -> numpy array, exactly those of the configuration's network, in its order.
    network: `checkpoints.NETWORK` or `checkpoints.average_name(rate)`. step: optimizer steps, 0 if unknown.
    notes:   what was changed or assumed, sentences for the console.
    """

    arrays: dict
    config: Config
    network: str
    step: int
    notes: tuple


def read(path, given=None):
    """The `Checkpoint` of a file of any of the formats.

    given: settings of the network, the diffusion and the data by name, and "normalisation": what the
           file does not show.
    Raises `UserError` for a broken or hostile file, for another network (all missing, unexpected and
    misshapen names together) and for a given setting that the file contradicts.
    """
    given = given or {}
    content = read_bytes(path)
    suffix = _format(path, "IN")
    if suffix == ".safetensors":
        raw, metadata = checkpoints.from_bytes(content, path)
    else:
        raw = (read_pkl if suffix == ".pkl" else read_pt)(content, path)
        metadata = {}
    arrays, notes = _normalised(raw, path)
    if metadata:
        config, name, step = _own_metadata(metadata, path)
        _check_agrees(config, given, path)
    else:
        config, assumed = infer({name: value.shape for name, value in arrays.items()}, given, path)
        notes += _explained(config, assumed)
        name, step = _network_and_step(path)
    expected = state_shapes(make_plan(config.model))
    notes += _fill_counters(arrays, expected)
    arrays = checkpoints.fitted_state(expected, arrays, path)
    _check_types(arrays, path)
    return Checkpoint({key: arrays[key] for key in expected}, config, name, step, tuple(notes))


def write(path, source):
    """Write a `Checkpoint` in the format that the path's ending names; the file appears at once.

    Raises `UserError` if there is a file already or the folder cannot be written.
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
    """Refuse a path that `write` could not use, before any work is done; `UserError`."""
    _format(path, "OUT")
    try:
        exists = bf.exists(str(path))
    except READ_ERRORS as error:
        raise found_expected(path, f"no usable path ({error})", "a path for a new file", "Check it.") from error
    if exists:
        raise found_expected(
            path, "a file that is there already", "a path for a new file", "Remove it or choose another name."
        )


def differing(first, second):
    """Names of the arrays that are not bitwise the same in two `Checkpoint`s, of both together."""

    def same(name):
        one = first.arrays.get(name)
        other = second.arrays.get(name)
        return (
            one is not None
            and other is not None
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )

    return [name for name in {**first.arrays, **second.arrays} if not same(name)]


def flags(config):
    """The command-line flags that say what a `.pt` or `.pkl` of this network does not hold, one text."""
    parts = [f"--normalisation {shlex.quote(config.normalisation)}"]
    for section in ("model", "diffusion"):
        settings = getattr(config, section)
        defaults = type(getattr(config, section))()
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if value != getattr(defaults, field.name):
                parts.append(f"--{field.name} {shlex.quote(str(value))}")
    return " ".join(parts)


def _format(path, where):
    suffix = PurePath(str(path)).suffix
    if suffix not in (".pt", ".pth", ".pkl", ".safetensors"):
        raise found_expected(
            f"{where} {path}",
            f"the ending {suffix!r}",
            ".pt, .pth, .pkl or .safetensors",
            "The ending names the format.",
        )
    return suffix


def _own_metadata(metadata, path):
    """(`Config`, network, step) of a file that this software has written."""
    try:
        return (
            configuration.from_dict(json.loads(metadata["config"]), where=path),
            metadata["network"],
            int(metadata["step"]),
        )
    except (KeyError, ValueError) as error:
        raise found_expected(
            path, f"metadata that cannot be read ({error})", "a file of segmentation_train.py", "Copy it again."
        ) from error


def _network_and_step(path):
    found = _ORIGINAL_NAME.fullmatch(PurePath(str(path)).stem)
    if not found:
        return checkpoints.NETWORK, 0
    return checkpoints.average_name(found["rate"]) if found["rate"] else checkpoints.NETWORK, int(found["step"])


def _normalised(raw, path):
    """(arrays under the network's own names and in its own types, notes)."""
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
        notes.append(f"The prefix {PREFIX} is left out.")
    half = [name for name, value in arrays.items() if value.dtype == np.float16]
    if half:
        notes.append(f"{len(half)} tensors are widened from float16 to float32, which is exact.")
        arrays |= {name: arrays[name].astype(np.float32) for name in half}
    for name, value in arrays.items():
        if name.endswith(COUNTER) and value.dtype.kind == "i" and value.size == 1:
            arrays[name] = value.astype(np.int64).reshape(())  # Jittor has neither 0-d values nor int64 here
    return arrays, notes


def _fill_counters(arrays, expected):
    """Add the counters of batch norms that a file lacks, which Jittor's do; returns the notes."""
    lacking = [name for name in expected if name.endswith(COUNTER) and name not in arrays]
    arrays |= {name: np.zeros((), np.int64) for name in lacking}
    return [f"{len(lacking)} missing {COUNTER} are set to 0; no computation uses them."] if lacking else []


def _check_types(arrays, path):
    wrong = [
        f"{name} {value.dtype}"
        for name, value in arrays.items()
        if value.dtype not in ((np.int64,) if name.endswith(COUNTER) else (np.float32, np.float64))
    ]
    if wrong:
        raise found_expected(
            path,
            f"{len(wrong)} tensors of another type: {join_names(wrong)}",
            f"float32 or float64, and int64 for {COUNTER}",
            "Save the network again.",
        )


def _check_agrees(config, given, path):
    """Refuse a given setting that contradicts the configuration in a file."""
    for name, value in given.items():
        inside = _setting(config, name)
        if value != inside:
            raise found_expected(f"--{name}", repr(value), f"{inside!r}, which stands in {path}", "Leave the flag out.")


def _setting(config, name):
    if name == "normalisation":
        return config.normalisation
    return getattr(getattr(config, configuration.setting_names()[name]), name)


def _explained(config, assumed):
    """Return the notes for a configuration that was not in the file."""

    def values(names):
        parts = []
        for name in names:
            value = _setting(config, name)
            shown = "empty" if value == "" else value
            parts.append(f"{name} {shown}")
        return ", ".join(parts)

    inferred = [name for name in configuration.setting_names("model") if name not in assumed]
    return [
        f"From names and shapes or flags: {values(inferred)}.",
        "Not visible in the weights, taken from the original's defaults (give a flag where yours differs): "
        f"{values(assumed)}.",
    ]

"""Checkpoints: the only place that forms their names, writes them and reads them.

A checkpoint is a folder `OUT/checkpoints/step_000700` with one safetensors file for the network
and one for each moving average of it. Every file holds the whole configuration in its metadata,
so that it can be used on its own, in either backend. A folder is written under a temporary name
and renamed; the file `OUT/checkpoints/last` names the newest.
"""
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from guided_diffusion_core import config as configuration
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.state_shapes import BOTTLENECK_EMBED

FORMAT = "medsegdiff-parity 1"
NETWORK = "model"
LISTED_NAMES = 8  # names of each kind that an error lists


def average_name(rate):
    """Name of the weights' moving average of a rate, e.g. "ema_0.9999"."""
    return f"ema_{rate}"


def save(out_dir, step, config, networks):
    """Write a checkpoint and make it the last one. Returns its folder (Path).

    out_dir:  folder of the run. step: optimizer steps done.
    config:   `Config`.
    networks: dict name (`NETWORK`, `average_name(rate)`) -> dict of numpy arrays by state-dict name.
    Raises `UserError` if the folder cannot be written; then nothing half-written is left.
    """
    root = Path(out_dir) / "checkpoints"
    folder = root / f"step_{step:06d}"
    temporary = root / f".{folder.name}.writing"
    metadata = {"format": FORMAT, "step": str(step), "config": json.dumps(config.to_dict())}
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, arrays in networks.items():
            contiguous = {key: np.ascontiguousarray(value).reshape(value.shape) for key, value in arrays.items()}
            save_file(contiguous, temporary / f"{name}.safetensors", metadata={**metadata, "network": name})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        _point_to(root / "last", folder.name)
    except OSError as error:
        raise found_expected(folder, error.strerror, "a folder that can be written", "Choose another --out_dir.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _point_to(path, name):
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(name + "\n")
    os.replace(temporary, path)


def find(model_path):
    """The safetensors file (Path) that `--model_path` means.

    model_path: a file; a checkpoint's folder, of which the first moving average is taken and else
                the network; or a run's folder, of which the last checkpoint is taken.
    Raises `UserError` if there is none.
    """
    path = Path(model_path)
    if not model_path or not path.exists():
        raise found_expected("--model_path", f"no file or folder {str(model_path)!r}", "a checkpoint",
                             "Give a file, a folder of checkpoints/ or the --out_dir of a training run.")
    if path.is_file():
        return path
    last = path / "checkpoints" / "last"
    if last.is_file():
        path = path / "checkpoints" / last.read_text().strip()
    files = sorted(path.glob("ema_*.safetensors")) + sorted(path.glob(f"{NETWORK}.safetensors"))
    if not files:
        raise found_expected(path, "no .safetensors file", f"ema_*.safetensors or {NETWORK}.safetensors",
                             "Give the --out_dir of a training run that has written a checkpoint.")
    return files[0]


def load(path):
    """Read one safetensors file of a checkpoint: (Config, dict name -> numpy array).

    Raises `UserError` if it is no whole safetensors file or was not written by `save`.
    """
    with _opened(path) as file:
        return _config(file, path), {name: file.get_tensor(name) for name in file.keys()}


def read_config(path):
    """The `Config` inside a safetensors file of a checkpoint, without its weights; errors as in `load`."""
    with _opened(path) as file:
        return _config(file, path)


def _opened(path):
    try:
        return safe_open(str(path), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise found_expected(path, f"no readable safetensors file ({error})", "a whole checkpoint file",
                             "Copy it again or use another checkpoint.") from error


def _config(file, path):
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise found_expected(path, "a safetensors file without this software's configuration",
                             "a checkpoint written by segmentation_train.py", "Use such a checkpoint.")
    return configuration.from_dict(json.loads(metadata["config"]), where=path)


def fitted_state(expected, arrays, where):
    """The arrays of a network, checked with `check_state`.

    A file of the original's version `1` has no bottleneck embedding, which is drawn anew in every call
    there: it becomes zero, and a line says so.
    """
    random_layer = [f"{BOTTLENECK_EMBED}.{kind}" for kind in ("weight", "bias")]
    if all(name in expected and name not in arrays for name in random_layer):
        sys.stderr.write(f"{where}: has no {BOTTLENECK_EMBED}, a layer that the original draws at random in every "
                         "call; it is set to zero.\n")
        arrays = {**arrays, **{name: np.zeros(expected[name], np.float32) for name in random_layer}}
    check_state(expected, arrays, where)
    return arrays


def check_state(expected, arrays, where):
    """Compare names and shapes of a state dict; `UserError` lists all that differ together.

    expected: dict name -> shape of the network. arrays: dict name -> numpy array.
    where:    the file that the arrays come from.
    """
    missing = [name for name in expected if name not in arrays]
    unexpected = [name for name in arrays if name not in expected]
    misshapen = [f"{name} {tuple(arrays[name].shape)} instead of {tuple(shape)}"
                 for name, shape in expected.items() if name in arrays and tuple(arrays[name].shape) != tuple(shape)]
    problems = [f"{len(names)} {kind}: {_listed(names)}"
                for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
                if names]
    if problems:
        raise UserError(f"{where}: the weights do not fit the network. " + "; ".join(problems)
                        + ". Use the checkpoint of this architecture.")


def _listed(names):
    more = len(names) - LISTED_NAMES
    return ", ".join(names[:LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")

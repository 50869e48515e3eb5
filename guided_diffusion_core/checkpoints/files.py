"""Writing and reading of checkpoints. Their names are formed only here and in `pointers.py`.

A checkpoint is a folder `OUT/checkpoints/step_000700`. It contains

    model.safetensors       the network
    ema_RATE.safetensors    each moving average of the network
    trainer.safetensors     the state of the optimizer and of the method
    contents.json           size and digest of each file
    validation.json         the Dice of the validations, in a run with validation

The metadata of every safetensors file has the whole configuration, so that each file can be used on its own, in either
backend. Of paths it has the last parts alone, so that a checkpoint can be shared. A folder is written under a temporary
name and then renamed. The files `OUT/checkpoints/last` and `best` name folders (`pointers.py`).
"""

import json
import shlex
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode_arrays
from safetensors.numpy import save_file

from guided_diffusion_core import config as configuration
from guided_diffusion_core.checkpoints import pointers
from guided_diffusion_core.checkpoints.pointers import SUFFIX, VALIDATION
from guided_diffusion_core.errors import UserError, command_text, found_expected, join_names
from guided_diffusion_core.system.files import WRITE_ERRORS, require_file, writing
from guided_diffusion_core.system.room import is_full

FORMAT = "medsegdiff-parity 1"
NETWORK = "model"
TRAINER = "trainer"
_LONGEST_STEP = 18  # digits


def average_name(rate):
    """Return the name of the moving average of a rate, such as "ema_0.9999"."""
    return f"ema_{rate}"


def save(out_dir, step, config, networks, keep=0, validation=None, own=None):
    """Write a checkpoint and make it the last one. Returns its folder (Path).

    out_dir:    folder of the run.
    step:       number of optimizer steps so far.
    config:     `Config`.
    networks:   name (`NETWORK`, `average_name(rate)`, `TRAINER`) -> dict of numpy arrays by name.
    keep:       number of checkpoints that stay; the oldest ones are removed, but never the best. 0 keeps all.
    validation: `Validation.state()`, JSON values, or None.
    own:        folders of checkpoints that may be removed for `keep`; None for all.
    On a full disk, those that `keep` would remove afterwards make room first. Raises `NoRoom` if that is not enough,
    `UserError` if the folder cannot be written; both leave no incomplete files and the checkpoints before.
    """
    folder = pointers.folder_of(out_dir, step)
    needed = sum(array.nbytes for arrays in networks.values() for array in arrays.values())
    with writing(folder, needed):
        try:
            _write(folder, step, config, networks, validation)
        except WRITE_ERRORS as error:
            # The arrays are still in memory, so that nothing of the step is lost.
            if not (is_full(error) and _make_room(out_dir, keep, own)):
                raise
            _write(folder, step, config, networks, validation)
        pointers.point(pointers.root_of(out_dir) / pointers.LAST, folder.name)
        if validation:
            point_to_best(out_dir, validation["best"])
        if keep:
            pointers.remove_old(out_dir, folder, keep, own and [*own, folder])
    return folder


def _write(folder, step, config, networks, validation):
    """Write the files of a checkpoint to its folder, which appears when they are complete."""
    # This order keeps a complete checkpoint on disk at every moment: first all files under a temporary name, then
    # the rename, then the pointers, and last the removal of old folders, to which no pointer leads any more.
    temporary = pointers.temporary_of(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, arrays in networks.items():
            save_file(_contiguous(arrays), temporary / f"{name}{SUFFIX}", metadata=_metadata(step, config, name))
        if validation:
            (temporary / VALIDATION).write_text(json.dumps(validation))
        pointers.write_contents(temporary)
        pointers.put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_room(out_dir, keep, own):
    """Remove checkpoints that `keep` would remove when the next one is written, but never the last; see `remove_old`.

    Returns whether one was removed.
    """
    last = pointers.last_folder(out_dir)
    return bool(keep and last) and pointers.remove_old(out_dir, last, max(1, keep - 1), own)


def point_to_best(out_dir, best):
    """Make a validated checkpoint the best one of a run.

    best: {"step": number of its step, "dice": its Dice}, or None.
    Returns whether the run's folder has this checkpoint; otherwise nothing changes.
    """
    folder = pointers.folder_of(out_dir, best["step"]) if best else None
    if folder is None or not folder.is_dir():
        return False
    pointers.point(pointers.root_of(out_dir) / pointers.BEST, f"{folder.name} {best['dice']:.6f}")
    return True


def forget_best(out_dir):
    """Remove the pointer to the best checkpoint, if there is one."""
    (pointers.root_of(out_dir) / pointers.BEST).unlink(missing_ok=True)


def _contiguous(arrays):
    """Return the arrays in C order, which safetensors needs."""
    # ascontiguousarray turns a number without axes into a vector, so that its shape is restored
    return {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in arrays.items()}


def _metadata(step, config, network):
    tree = configuration.without_paths(config).to_dict()
    return {"format": FORMAT, "step": str(step), "config": json.dumps(tree), "network": network}


def to_bytes(step, config, network, arrays):
    """Return the bytes of one safetensors file, as `save` writes it and `load` reads it.

    step:    number of optimizer steps.
    config:  `Config`.
    network: name of the network, `NETWORK` or `average_name(rate)`.
    arrays:  name -> numpy array.
    """
    return encode_arrays(_contiguous(arrays), metadata=_metadata(step, config, network))


def find(model_path, flag="--model_path"):
    """Find the safetensors file (Path) that `--model_path` means.

    model_path: one of
                - a file
                - the folder of a checkpoint, which gives its first moving average, or the network if it has none
                - a pointer such as RUN/checkpoints/best
                - the folder of a run, which gives its last checkpoint
    flag:       the flag that names it, for errors.
    Raises `UserError` if there is none.
    """
    path = Path(model_path)
    if not model_path or not path.exists():
        raise found_expected(
            flag,
            f"no file or folder {str(model_path)!r}",
            "a checkpoint",
            "Give a file, a folder of checkpoints/ or the --out_dir of a training run.",
        )
    if path.suffix in (".pt", ".pth", ".pkl"):
        convert = command_text("medsegdiff", "convert", path, path.with_suffix(".safetensors"))
        raise found_expected(
            flag,
            path,
            "a .safetensors file, which holds the configuration too",
            f"Run: {convert} --num_heads HEADS --image_size PIXELS, with those of its training, which it lacks.",
        )
    path = pointers.resolved(path)
    if not path.is_dir():
        require_file(path)
        return path
    # averages first: they segment better than the last weights
    files = sorted(path.glob("ema_*.safetensors")) + sorted(path.glob(f"{NETWORK}.safetensors"))
    if not files:
        raise found_expected(
            path,
            "no .safetensors file",
            f"ema_*.safetensors or {NETWORK}.safetensors",
            "Give the --out_dir of a training run that has written a checkpoint.",
        )
    return files[0]


def find_whole(resume, out_dir):
    """Find the folder (Path) of the checkpoint that `--resume` means, and check that all its files are whole.

    resume:  "last", the newest one of `out_dir`; or the folder of a checkpoint, a pointer or the folder of a run.
    out_dir: folder of the run.
    Raises `UserError` if there is none, or if a file is missing, cut or changed. The error names the newest whole
    checkpoint of the run.
    """
    folder = resume_folder(resume, out_dir)
    flaw = pointers.flaw(folder)
    if flaw:
        raise found_expected(*flaw, pointers.advice(folder.parent))
    return folder


def resume_folder(resume, out_dir):
    """Return the folder (Path) that `--resume` means, as `find_whole` does, without a look at its files."""
    return pointers.resolved(Path(out_dir if resume == "last" else resume))


def load_validation(folder):
    """Read the `validation` that `save` has written, or None."""
    path = Path(folder) / VALIDATION
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text())
        best = tree["best"]
        return {
            "step": int(tree["step"]),
            "best": best and {"step": int(best["step"]), "dice": float(best["dice"])},
        }
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise found_expected(
            path, f"no record of validations ({error})", "a whole checkpoint", "Use another checkpoint."
        ) from error


def load_all(folder):
    """Read all files of a checkpoint's folder: (step, Config, name -> dict of numpy arrays)."""
    networks = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with _opened(path) as file:
            config = _config(file, path)
            step = _step(file.metadata(), path)
            networks[path.stem] = _arrays(file, path)
    return step, config, networks


def load(path):
    """Read one safetensors file of a checkpoint. Returns (Config, dict name -> numpy array).

    Raises `UserError` if the file is not a whole safetensors file, or was not written by `save`.
    """
    with _opened(path) as file:
        return _config(file, path), _arrays(file, path)


def read_config(path):
    """Read the `Config` in a safetensors file of a checkpoint, without its weights, with the errors of `load`."""
    with _opened(path) as file:
        return _config(file, path)


@contextmanager
def _opened(path):
    """Open a safetensors file for the block. Raises `UserError` if it, or a part that is read, is not readable."""
    try:
        require_file(path)
        with safe_open(str(path), framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, MemoryError) as error:
        raise found_expected(
            path,
            f"no readable safetensors file ({error})",
            "a whole checkpoint file",
            "Copy it again or use another checkpoint.",
        ) from error


def _config(file, path):
    """Return the `Config` in the metadata of an open safetensors file; path: its name in error messages."""
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise found_expected(
            path,
            "a safetensors file without this software's configuration",
            "a checkpoint written by medsegdiff train",
            "Use such a checkpoint.",
        )
    try:
        tree = json.loads(metadata["config"])
    except (KeyError, ValueError, RecursionError) as error:
        raise found_expected(
            path,
            f"a configuration that cannot be read ({error})",
            "a whole checkpoint file",
            "Copy it again or use another checkpoint.",
        ) from error
    return configuration.from_checkpoint(tree, path)


def _arrays(file, path):
    """Return name -> numpy array of an open safetensors file."""
    try:
        return {name: file.get_tensor(name) for name in file.keys()}
    except (TypeError, AttributeError, ValueError) as error:  # a type that numpy lacks, such as bfloat16
        raise found_expected(
            path,
            f"tensors that numpy cannot hold ({error})",
            "float32, in which medsegdiff train writes them",
            f"Run: medsegdiff convert {shlex.quote(str(path))} NEW.safetensors",
        ) from error


def _step(metadata, path):
    """Return the number of steps in the metadata of a file."""
    text = metadata.get("step", "")
    if not text.isdecimal() or len(text) > _LONGEST_STEP:
        raise found_expected(path, f"the step {text!r}", "a number of steps", "Use another checkpoint.")
    return int(text)


def check_state(expected, arrays, where):
    """Check the names and shapes of a state dict.

    expected: name -> shape, those of the network.
    arrays:   name -> numpy array.
    where:    name of the file of the arrays, for the error.
    Raises one `UserError` that lists all differences.
    """
    missing = [name for name in expected if name not in arrays]
    unexpected = [name for name in arrays if name not in expected]
    misshapen = [
        f"{name} {tuple(arrays[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in arrays and tuple(arrays[name].shape) != tuple(shape)
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    problems = [f"{len(names)} {kind}: {join_names(names)}" for kind, names in kinds.items() if names]
    if problems:
        listed = "; ".join(problems)
        raise UserError(
            f"{where}: the weights do not fit the network. {listed}. Use the checkpoint of this architecture."
        )

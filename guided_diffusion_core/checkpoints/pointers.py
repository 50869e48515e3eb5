"""The folders of a run's checkpoints, the check that they are whole, and the pointers to them.

A checkpoint is `OUT/checkpoints/step_000700`; its `contents.json` has the size and digest of each of its files. Two
pointers, files of one line, name a folder next to them: `last` the newest checkpoint, and `best` that with the highest
Dice, which follows the name.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import temporary_name

CONTENTS = "contents.json"
LAST = "last"
BEST = "best"
VALIDATION = "validation.json"
SUFFIX = ".safetensors"
_PREFIX = "step_"


def root_of(out_dir):
    """Return the folder (Path) of a run's checkpoints and pointers."""
    return Path(out_dir) / "checkpoints"


def folder_of(out_dir, step):
    """Return the folder (Path) of the checkpoint after `step` optimizer steps."""
    return root_of(out_dir) / f"{_PREFIX}{step:06d}"


def point(pointer, line):
    """Write a pointer, completely or not at all."""
    temporary = temporary_of(pointer)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(line + "\n")
            # The line has to be on disk before the rename, which may get there first otherwise.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, pointer)
    finally:
        temporary.unlink(missing_ok=True)


def pointed_to(pointer):
    """Return the folder (Path) that a pointer names. Raises `UserError` for a cut pointer or a missing folder."""
    folder = _named(pointer)
    if folder and folder.is_dir():
        return folder
    found = f"the name {folder.name} without such a folder" if folder else "a cut file"
    raise found_expected(pointer, found, "the name of a checkpoint next to it", advice(pointer.parent))


def _named(pointer):
    """Return the folder that a pointer names, which may be missing; None for a cut or missing pointer."""
    content = pointer.read_text(errors="replace") if pointer.is_file() else ""
    # The newline is written last: a line without it is cut.
    if not content.startswith(_PREFIX) or not content.endswith("\n"):
        return None
    return pointer.parent / content.split()[0]


def resolved(path):
    """Return the folder of the checkpoint that a path means.

    A pointer gives the folder that it names, and the folder of a run that of its last checkpoint. Other paths are
    returned as they are.
    """
    last = root_of(path) / LAST
    if last.is_file():
        return pointed_to(last)
    if path.name in (LAST, BEST) and path.is_file():
        return pointed_to(path)
    return path


def write_contents(folder):
    """Write `CONTENTS` of the files in a folder, and flush all of them to the disk.

    Without the flush, a later rename of the folder might reach the disk before its files.
    """
    contents = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    (folder / CONTENTS).write_text(json.dumps(contents, indent=1))
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _contents(folder):
    """Return what `write_contents` has written; ValueError for anything else."""
    if not (folder / CONTENTS).is_file():
        raise ValueError(f"no file {CONTENTS}")
    tree = json.loads((folder / CONTENTS).read_text())
    is_whole = isinstance(tree, dict) and all(isinstance(written, dict) for written in tree.values())
    # A name with a folder in it, a pipe or a device could lead anywhere.
    if not is_whole or not all(Path(name).name == name and (folder / name).is_file() for name in tree):
        raise ValueError(f"{CONTENTS} names other things than files next to it")
    return tree


def _fingerprint(path):
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def flaw(folder):
    """Find a fault in a checkpoint's folder.

    Returns None if all files are as they were written, otherwise the first three arguments of `found_expected`.
    """
    try:
        for name, written in _contents(folder).items():
            found = _fingerprint(folder / name)
            if found != written:
                return (
                    folder / name,
                    f"{found['bytes']} bytes that differ from those written",
                    f"the {written.get('bytes')} bytes that {CONTENTS} records",
                )
    except (OSError, ValueError, RecursionError) as error:
        return folder, f"no whole checkpoint ({error})", "the folder of a checkpoint or of a run"
    return None


def advice(root):
    """Return what to do about a broken checkpoint: the user may choose the newest whole one of the same run."""
    for folder in reversed(steps(root)):
        if flaw(folder) is None:
            return f"The newest whole checkpoint is {folder}; give that one."
    return "There is no whole one next to it."


def remove_old(out_dir, newest, keep, own=None):
    """Remove the oldest checkpoints until `keep` are left. Returns whether one was removed.

    newest: the folder that was written last, which stays, as the best one does. Others may have later steps, if the
            run was resumed from an earlier one.
    own:    folders that may be removed and that count; None for all.
    """
    best = _named(root_of(out_dir) / BEST)
    # `newest` goes to the end, whatever its number
    folders = [folder for folder in steps(root_of(out_dir)) if folder != newest and (own is None or folder in own)]
    old = [folder for folder in [*folders, newest][:-keep] if folder != best]
    for folder in old:
        remove(folder)
    return bool(old)


def remove(folder):
    """Remove the files of a checkpoint, and its folder unless it holds other files."""
    own = [path for path in folder.iterdir() if path.suffix == SUFFIX or path.name in (CONTENTS, VALIDATION)]
    if len(own) == len(list(folder.iterdir())):
        # A kill leaves the checkpoint, or a hidden folder that the next run removes.
        hidden = temporary_of(folder.with_name(f"{folder.name}.removed"))
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(folder, hidden)
        shutil.rmtree(hidden)
        return
    # without its contents a checkpoint is not whole, so that no half of one is ever taken for it
    for path in sorted(own, key=lambda path: path.name != CONTENTS):
        path.unlink()


def put_in_place(temporary, folder):
    """Give the finished folder of a checkpoint its name, in place of an earlier checkpoint of the same step."""
    if folder.is_dir():
        remove(folder)
    if not folder.is_dir():
        os.replace(temporary, folder)
        return
    # Files of others lie there. The contents come last, with which the checkpoint is whole.
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == CONTENTS):
        os.replace(path, folder / path.name)


def temporary_of(path):
    """Return the hidden path that a checkpoint's folder or a pointer has while this process writes it."""
    return path.with_name(temporary_name(f".{path.name}"))


def clear_unfinished(out_dir):
    """Remove what killed processes have left unfinished. No other run may use the folder (`system.locks`)."""
    for path in root_of(out_dir).glob(".*.writing*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def steps(root):
    """Return the checkpoints (Path) in the folder of a run's checkpoints, oldest first."""
    folders = (path.parent for path in root.glob(f"{_PREFIX}*/{CONTENTS}"))
    return sorted((path for path in folders if path.name.removeprefix(_PREFIX).isdigit()), key=step_of)


def last_folder(out_dir):
    """Return the folder (Path) of a run's last checkpoint, or None."""
    folder = _named(root_of(out_dir) / LAST)
    return folder if folder and folder.is_dir() else None


def folders_until(out_dir, step):
    """Return the folders (Path) of a run's checkpoints up to a step, oldest first."""
    return [folder for folder in steps(root_of(out_dir)) if step_of(folder) <= step]


def step_of(folder):
    """Return the number of optimizer steps of a checkpoint by the name of its folder."""
    return int(folder.name.removeprefix(_PREFIX))

"""The checkpoints of a run as folders: which there are, which are whole, and the pointers to them.

A checkpoint is `OUT/checkpoints/step_000700`; its `contents.json` has the size and digest of each
file in it. Two pointers, files of one line, name folders beside them: `last` the newest, `best` that of
the highest Dice, with the Dice behind the name.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from guided_diffusion_core.errors import found_expected

CONTENTS = "contents.json"
LAST = "last"
BEST = "best"
_PREFIX = "step_"


def root_of(out_dir):
    """The folder (Path) of a run's checkpoints and pointers."""
    return Path(out_dir) / "checkpoints"


def folder_of(out_dir, step):
    """The folder (Path) of the checkpoint after `step` optimizer steps."""
    return root_of(out_dir) / f"{_PREFIX}{step:06d}"


def point(pointer, line):
    """Write a pointer: whole, or not at all."""
    temporary = pointer.with_name(f".{pointer.name}.writing")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, pointer)


def pointed_to(pointer):
    """The folder (Path) that a pointer names. Raises `UserError` if the pointer is cut or the folder is gone."""
    folder = _named(pointer)
    if folder and folder.is_dir():
        return folder
    found = f"the name {folder.name}, of which there is no folder" if folder else "a cut file"
    raise found_expected(pointer, found, "the name of a checkpoint beside it", advice(pointer.parent))


def _named(pointer):
    """The folder that a pointer names, there or not; None if the pointer is cut or there is none."""
    content = pointer.read_text(errors="replace") if pointer.is_file() else ""
    return pointer.parent / content.split()[0] if content.startswith(_PREFIX) and content.endswith("\n") else None


def resolved(path):
    """A pointer, or a run's folder by its last checkpoint, as the checkpoint's folder; other paths as they are."""
    last = root_of(path) / LAST
    if last.is_file():
        return pointed_to(last)
    return pointed_to(path) if path.name in (LAST, BEST) and path.is_file() else path


def write_contents(folder):
    """Write `CONTENTS` of the files in a folder, and bring all to the disk: a rename may get there before
    what it names."""
    contents = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    (folder / CONTENTS).write_text(json.dumps(contents, indent=1))
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _fingerprint(path):
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def flaw(folder):
    """What is wrong with a checkpoint's folder: the first three arguments of `found_expected`; None for a
    whole one, all files of which are there as they were written."""
    try:
        for name, written in json.loads((folder / CONTENTS).read_text()).items():
            found = _fingerprint(folder / name)
            if found != written:
                return (
                    folder / name,
                    f"{found['bytes']} bytes that are not those written",
                    f"the {written['bytes']} bytes that {CONTENTS} records",
                )
    except (OSError, ValueError) as error:
        return folder, f"no whole checkpoint ({error})", "the folder of a checkpoint or of a run"
    return None


def advice(root):
    """What to do where a checkpoint is broken: the newest whole one beside it is named, never taken unasked."""
    whole = next((folder for folder in reversed(_steps(root)) if flaw(folder) is None), None)
    return f"The newest whole checkpoint is {whole}; give that one." if whole else "There is no whole one beside it."


def remove_old(out_dir, newest, keep):
    """Remove the oldest checkpoints until `keep` are left; the folder `newest`, even if a run that went further
    before it was resumed has left later ones, and the best one stay whatever their age."""
    best = _named(root_of(out_dir) / BEST)
    for old in sorted(_steps(root_of(out_dir)), key=newest.__eq__)[:-keep]:
        if old != best:
            shutil.rmtree(old)


def _steps(root):
    """The checkpoints of a run, oldest first."""
    folders = (path for path in root.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit())
    return sorted(folders, key=lambda path: int(path.name.removeprefix(_PREFIX)))

"""Walk through a folder of data: which files belong to it, and which are passed over and said to be left out.

All layouts find their files with `walk_data`, so that each of them passes over the same things:

- hidden files and folders, and the folders that file managers, archives and network disks leave (`TRASH`);
- links to folders that are read already. A link to any other folder is followed once;
- links that lead nowhere, pipes and devices.

Names are compared in one Unicode normal form (NFC). A folder inside a folder of the same name, as two unpackings of an
archive leave it, counts as one folder.
"""

import os
import re
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import blobfile as bf

from guided_diffusion_core.data.names import normal_form
from guided_diffusion_core.errors import found_expected, join_names
from guided_diffusion_core.system.files import is_local
from guided_diffusion_core.system.processes import launched

# Folders of macOS archives, recycle bins and network disks, in lower case; those with a leading dot count as hidden.
TRASH = frozenset(
    (
        "__macosx",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "@eadir",
        "#recycle",
        "@recycle",
        "lost+found",
    )
)
# Files that every file manager writes and nobody misses, in lower case.
UNSAID = frozenset((".ds_store", "thumbs.db", "desktop.ini", ".gitignore", ".gitattributes", ".gitkeep"))
HIDDEN_FOLDER = "hidden folder"
HIDDEN_FILE = "hidden file"
TRASH_FOLDER = "folder of a file manager"
READ_LINK = "link to a folder that is read already"
BROKEN_LINK = "link that leads nowhere"
NO_FILE = "special file (device or pipe)"
_NOUN = re.compile(r"\b(folder|file|link)\b")  # the word of such a text that gets the plural

_NOTED = ContextVar("left_out", default=None)  # the `LeftOut` of the innermost `noting_left_out`; None outside


@dataclass(frozen=True)
class DataFile:
    """A file below a folder of data.

    root:  the folder of data.
    parts: names of the folders from there down to the file, in the normal form; equal neighbours are one.
    name:  name of the file, in the normal form.
    path:  its true path.
    """

    root: str
    parts: tuple
    name: str
    path: str

    @property
    def folder(self):
        """Return the path of the folder that the file belongs to, in which equal neighbours are one."""
        return bf.join(self.root, *self.parts) if self.parts else self.root

    @property
    def shown(self):
        """Return the path below the folder of data, as messages show it."""
        return "/".join((*self.parts, self.name))


class LeftOut:
    """The list of what reading a folder of data left out, by kind."""

    def __init__(self):
        self._names = {}  # kind -> dict with the names as keys, in the order in which they were found

    def add(self, kind, name):
        """Add a name; a name that is there already stays once."""
        self._names.setdefault(kind, {})[name] = True

    def take_back(self, kind):
        """Remove all names of a kind, if there are any."""
        self._names.pop(kind, None)

    def kinds(self):
        """Return a dict of kind -> list of names."""
        return {kind: list(names) for kind, names in self._names.items()}

    def __str__(self):
        """Return one line, such as "left out: 2 folders named test (a/test, b/test)"; "" if nothing was left out."""
        found = [f"{_counted(kind, len(names))} ({join_names(names)})" for kind, names in self._names.items()]
        return f"left out: {', '.join(found)}" if found else ""


def _counted(kind, count):
    """Return "1 folder named test" or "2 folders named test"."""
    several = _NOUN.sub(r"\1s", kind, count=1)
    return f"{count} {kind if count == 1 else several}"


@contextmanager
def noting_left_out():
    """Collect in a `LeftOut`, which is yielded, what is passed over inside the block."""
    found = LeftOut()
    token = _NOTED.set(found)
    try:
        yield found
    finally:
        _NOTED.reset(token)


@contextmanager
def saying_left_out():
    """Print in one line on stderr what is passed over inside the block; of several processes the first one prints."""
    with noting_left_out() as found:
        yield
    if str(found) and launched().rank == 0:
        print(found, file=sys.stderr)


def leave_out(kind, name):
    """Note that something of a folder is not used.

    kind: what it is, with the word folder, file or link in the singular. name: its path below the folder.
    """
    found = _NOTED.get()
    if found is not None:
        found.add(kind, name)


def take_back(kind):
    """Note that what was left out as of a kind is used after all."""
    found = _NOTED.get()
    if found is not None:
        found.take_back(kind)


def walk_data(root):
    """Return all files of a folder of data, a list of `DataFile` in the order of their paths.

    Raises `UserError` for a folder that may not be read.
    """
    root = str(root)
    found = _local_files(os.path.normpath(root)) if is_local(root) else _bucket_files(root)
    return sorted(found, key=lambda file: (file.parts, file.name))


def _passed_over(name, is_folder):
    """Return the kind of a file or folder that its name alone excludes, or None."""
    if name.startswith("."):
        return HIDDEN_FOLDER if is_folder else HIDDEN_FILE
    return TRASH_FOLDER if is_folder and name.lower() in TRASH else None


def _is_left_out(name, parts, is_folder):
    """Return whether the name of a file or folder excludes it, and note what is left out."""
    kind = _passed_over(name, is_folder)
    is_said = is_folder or not (name.startswith("._") or name.lower() in UNSAID)
    if kind and is_said:
        leave_out(kind, "/".join((*parts, name)))
    return kind is not None


def _data_file(root, parts, name, path):
    names = [normal_form(part) for part in parts]
    kept = [part for place, part in enumerate(names) if place == 0 or part.lower() != names[place - 1].lower()]
    return DataFile(root, tuple(kept), normal_form(name), path)


def _bucket_files(root):
    """Yield the files of a folder in a bucket, which has no links."""
    for folder, folders, names in bf.walk(root):
        parts = tuple(part for part in folder[len(root) :].split("/") if part)
        folders[:] = [name for name in folders if not _is_left_out(name.rstrip("/"), parts, True)]
        for name in names:
            if not _is_left_out(name, parts, False):
                yield _data_file(root, parts, name, bf.join(folder, name))


def _local_files(root):
    """Return the files of a folder on disk. Links are followed when all true folders are read."""
    found = []
    read = set()  # (device, number) of each folder that was read
    folders = [(root, ())]
    links = []
    while folders or links:
        if not folders:
            links.sort(key=lambda link: link[1])
            folders.append(links.pop(0))
        folder, parts = folders.pop()
        identity = _identity(folder)
        if identity in read or (parts and _leads_upwards(folder)):
            leave_out(READ_LINK, "/".join(parts))
            continue
        read.add(identity)
        for entry in _entries(folder):
            kind = _kind(entry)
            if _is_left_out(entry.name, parts, kind == "folder"):
                continue
            if kind == "folder":
                (links if entry.is_symlink() else folders).append((entry.path, (*parts, entry.name)))
            elif kind == "file":
                found.append(_data_file(root, parts, entry.name, entry.path))
            else:
                leave_out(kind, "/".join((*parts, entry.name)))
    return found


def _identity(folder):
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _leads_upwards(folder):
    """Return whether a folder is a link to a folder that contains the link."""
    if not os.path.islink(folder):
        return False
    target = os.path.realpath(folder)
    place = os.path.realpath(os.path.dirname(folder) or ".")
    return place == target or place.startswith(os.path.join(target, ""))


def _entries(folder):
    """Return what is in a folder on disk, by name. Raises `UserError` if it may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise found_expected(
            folder, f"a folder that cannot be read ({error.strerror})", "a readable one", "Change its permissions."
        ) from error


def _kind(entry):
    """Return "folder" or "file" for what an entry is or links to, otherwise the kind in which it is left out."""
    try:
        if entry.is_symlink():
            entry.stat()  # raises an error for a link to nothing, or to itself
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else NO_FILE
    except OSError:
        return BROKEN_LINK

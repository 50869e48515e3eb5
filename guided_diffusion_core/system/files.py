"""Reading and writing of whole files, on disk or in a bucket (gs://, https://*.blob.core...).

Paths go through blobfile. A local file is written under a temporary name in its own folder and
renamed; an object in a bucket appears only when its upload is complete. So no reader ever sees
half a file, wherever it lies.
"""

import os
import platform
from contextlib import contextmanager, suppress

import blobfile as bf

from guided_diffusion_core.errors import found_expected

READ_ERRORS = (OSError, bf.Error)  # what a path that cannot be read or written raises

_WRITING = f".writing-{platform.node()}-"  # and the number of the process: end of a file's name while it is written
_HELD = {}  # path -> content, of `held`


def is_local(path):
    """Whether a path lies on this machine's disks rather than in a bucket."""
    return "://" not in str(path)


def read_bytes(path):
    """The content of a file. Raises `UserError` if it cannot be read."""
    if str(path) in _HELD:
        return _HELD[str(path)]
    try:
        return bf.read_bytes(str(path))
    except READ_ERRORS as error:
        raise found_expected(path, f"no readable file ({error})", "a file", "Check the path.") from error


@contextmanager
def held(path):
    """Read a file once: inside, `read_bytes` returns what was read then. Raises `UserError` as that does."""
    _HELD[str(path)] = read_bytes(path)
    try:
        yield _HELD[str(path)]
    finally:
        _HELD.pop(str(path), None)


def write_atomic(path, content):
    """Write bytes to a file that appears at once and whole.

    Raises `UserError` if its folder cannot be written; then nothing is left behind.
    """
    path = str(path)
    if not is_local(path):
        bf.write_bytes(path, content)
        return
    temporary = f"{path}{_WRITING}{os.getpid()}"
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def clear_unfinished(folder):
    """Remove what processes that were killed while they wrote (`write_atomic`) have left in a folder, those of this
    machine alone: which of another machine's live cannot be seen from here."""
    if not is_local(folder):
        return
    for name in os.listdir(folder):
        number = name.rpartition(_WRITING)[2] if _WRITING in name else ""
        if number.isdecimal() and not _is_running(int(number)):
            with suppress(FileNotFoundError):  # another process has been quicker
                os.remove(os.path.join(folder, name))


def _is_running(number):
    """Whether a process of that number is there, other than this one, which begins."""
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user
    return True


def make_writable_folder(folder, flag):
    """Make a folder if it is not there, and prove by a trial file that it can be written.

    flag: the command-line flag that names the folder, for the error.
    Raises `UserError` if it cannot.
    """
    folder = str(folder)
    try:
        bf.makedirs(folder)
        if is_local(folder):
            trial = os.path.join(folder, f".writable-{os.getpid()}")
            with open(trial, "xb"):
                pass
            os.remove(trial)
    except READ_ERRORS as error:
        raise _unwritable(f"{flag} {folder}", error) from error
    return folder


def require_folder(folder, flag, expected):
    """The path of a folder that must be there and hold something, as a string.

    flag: the command-line flag that names it. expected: the layout that it should have.
    Raises `UserError` if it is missing or empty.
    """
    folder = str(folder)
    if not folder or not bf.isdir(folder):
        found = "a file" if folder and bf.exists(folder) else "no such folder"
        raise found_expected(f"{flag} {folder!r}", found, expected, "Check the path.")
    if not any(True for _ in bf.listdir(folder)):
        raise found_expected(f"{flag} {folder!r}", "an empty folder", expected, "Check the path.")
    return folder


def walk_files(folder):
    """All files under a folder in the order of their paths: pairs (folder, name). Hidden ones
    (a leading dot, as macOS and unfinished copies leave behind) are passed over."""
    for root, folders, names in bf.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield root, name


def _unwritable(where, error):
    return found_expected(
        where, f"that it cannot be written ({error})", "a folder that can be written", "Choose another folder."
    )

"""Reading and writing of whole files, on disk or in a bucket (gs://, https://*.blob.core...).

Paths go through blobfile. A local file is written under a temporary name in the same folder and then
renamed. An object in a bucket appears only when its upload is complete. So no reader ever sees half
a file.
"""

import io
import os
import platform
import stat
from contextlib import contextmanager, suppress

import blobfile as bf
from safetensors import SafetensorError

from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.room import is_full, no_room

READ_ERRORS = (OSError, bf.Error)  # raised for a path that cannot be read or written
WRITE_ERRORS = (*READ_ERRORS, SafetensorError)

# The name of a file or folder ends in this and the process's number while it is being written.
_WRITING = f".writing-{platform.node()}-"
USUAL_LONGEST_NAME = 255  # bytes
LARGEST_PROCESS = 4194304  # the highest number of a process on Linux
# Kinds of paths that are no files; reading some of them never ends.
_NO_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_IN_MEMORY = {}  # path -> content of the files that `read_once` keeps


def is_local(path):
    """Return True if a path is on this machine's disks, not in a bucket."""
    return "://" not in str(path)


def require_local(path, flag):
    """Refuse a path in a bucket; `UserError`. Checkpoints and logs are written on this machine's disks alone."""
    if not is_local(path):
        raise found_expected(
            flag, f"{path}, a path in a bucket", "a folder on this machine", "Copy the folder when the run has ended."
        )


def require_file(path):
    """Refuse a path that exists and is no file, such as a pipe or a link to a device; `UserError`."""
    if not is_local(path):
        return
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):
        return  # whoever reads it says why that is not possible
    if kind != stat.S_IFREG:
        raise found_expected(path, _NO_FILES.get(kind, "no file"), "a file", "Check the path.")


def read_bytes(path):
    """Return the content of a file. Raises `UserError` if it cannot be read."""
    if str(path) in _IN_MEMORY:
        return _IN_MEMORY[str(path)]
    require_file(path)
    try:
        return bf.read_bytes(str(path))
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error
    except MemoryError as error:
        raise found_expected(path, "more bytes than the memory holds", "a smaller file", "Check the path.") from error


def open_bytes(path):
    """Open a file to read parts of it. Raises `UserError` if it cannot be read."""
    if str(path) in _IN_MEMORY:
        return io.BytesIO(_IN_MEMORY[str(path)])
    require_file(path)
    try:
        return bf.BlobFile(str(path), "rb")
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path, error):
    return found_expected(path, f"no readable file ({error})", "a file", "Check the path.")


@contextmanager
def read_once(path):
    """Read a file and keep its content in memory, where `read_bytes` finds it inside the block; yields the content.

    Raises `UserError` if the file cannot be read.
    """
    content = read_bytes(path)
    _IN_MEMORY[str(path)] = content
    try:
        yield content
    finally:
        _IN_MEMORY.pop(str(path), None)


@contextmanager
def writing(path, needed=0, flag=""):
    """Turn the errors of writing inside the block, safetensors' own included, into a `UserError`.

    path:   the file or folder that is written.
    needed: its bytes; 0 for a few. A full disk is `NoRoom`.
    flag:   the command-line flag that names it.
    """
    try:
        yield
    except WRITE_ERRORS as error:
        if is_full(error):
            raise no_room(path, error, needed) from error
        raise _unwritable(f"{flag} {path}" if flag else path, error) from error


def temporary_name(name):
    """Return the name that a file or folder of this process has while it is being written."""
    return f"{name}{_WRITING}{os.getpid()}"


def write_atomic(path, content):
    """Write bytes to a file that appears only when it is complete.

    Raises `UserError` if its folder cannot be written, `NoRoom` on a full disk; then nothing is left behind.
    """
    path = str(path)
    with writing(path, len(content)):
        if not is_local(path):
            bf.write_bytes(path, content)
            return
        temporary = temporary_name(path)
        try:
            with open(temporary, "xb") as file:
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise


def write_text(path, text):
    """Write a text as UTF-8, see `write_atomic`.

    The bytes of a file name that is no UTF-8, which Python holds as halves of surrogate pairs, become escapes such as
    "\\udcb2". In JSON these are the escapes of the same characters, so that the name is read back as it was.
    """
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def longest_name(folder):
    """Return the most bytes that the name of a file may have in a folder, the ending while it is written included.

    The folder need not exist yet: the nearest one that does is asked. In a bucket, and on systems that do not say it,
    names have 255 bytes as nearly everywhere.
    """
    existing = os.path.abspath(folder)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    try:
        limit = os.pathconf(existing, "PC_NAME_MAX") if is_local(folder) else USUAL_LONGEST_NAME
    except (AttributeError, OSError, ValueError):
        limit = USUAL_LONGEST_NAME
    return limit - len(os.fsencode(f"{_WRITING}{LARGEST_PROCESS}"))


def clear_unfinished(folder):
    """Remove the temporary files that killed processes have left in a folder (`temporary_name`).

    Only those of this machine's processes are removed, because a process of another machine may still run.
    """
    if not is_local(folder) or not os.path.isdir(folder):
        return
    for name in os.listdir(folder):
        number = name.rpartition(_WRITING)[2] if _WRITING in name else ""
        if number.isdecimal() and not _is_running(int(number)):
            with suppress(FileNotFoundError):  # another process may have removed it already
                os.remove(os.path.join(folder, name))


def _is_running(number):
    """Return True if another process has this number. The present one does not count: it has written nothing yet."""
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it runs, as another user
    return True


def make_writable_folder(folder, flag):
    """Make a folder if it does not exist, check with a trial file that it can be written, and return its path.

    flag: the command-line flag that names the folder, for the error.
    Raises `UserError` if it cannot be written.
    """
    folder = str(folder)
    with writing(folder, flag=flag):
        bf.makedirs(folder)
        if is_local(folder):
            trial = os.path.join(folder, f".writable-{os.getpid()}")
            with open(trial, "xb"):
                pass
            os.remove(trial)
    return folder


def list_names(folder):
    """Return the sorted names of all files and folders in a folder, links to nothing included; [] without a folder.

    Files may go while the folder is listed: other processes write theirs under temporary names.
    """
    folder = str(folder)
    if is_local(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return sorted(bf.listdir(folder)) if bf.isdir(folder) else []


def require_folder(folder, flag, expected):
    """Return the path of a folder as a string; raise `UserError` if the folder is missing or empty.

    flag: the command-line flag that names the folder. expected: the layout that it should have.
    """
    folder = str(folder)
    if not folder or not bf.isdir(folder):
        found = "a file" if folder and bf.exists(folder) else "no such folder"
        raise found_expected(f"{flag} {folder!r}", found, expected, "Check the path.")
    if not list_names(folder):
        raise found_expected(f"{flag} {folder!r}", "an empty folder", expected, "Check the path.")
    return folder


def _unwritable(where, error):
    return UserError(f"{where}: cannot be written ({error}); expected a writable folder. Choose another folder.")

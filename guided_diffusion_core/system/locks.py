"""The lock of a run's folder, so that no two runs write into one folder at once.

The kernel holds the lock (flock) and frees it when the process ends, however it ends, so a lock is never stale. The
lock's file names the process for the message of the second run.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import sys
import time

from tqdm import tqdm

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import is_local, make_writable_folder, writing

NAME = ".medsegdiff-lock"
# A file system that has no locks answers with one of these.
_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def locked_folder(folder, what, shared=False, flag="--out_dir"):
    """Hold the lock of a folder inside the block. The folder is made if it does not exist.

    what:   the run, such as "a training", for the message of another run that finds the folder locked.
    shared: runs that share the lock may work in the folder at once, but none that does not share it.
    flag:   the command-line flag that names the folder.
    Raises `UserError` that names the other run's process and machine. A bucket has no locks and is left as it is.
    """
    if not is_local(folder):
        yield
        return
    path = os.path.join(make_writable_folder(folder, flag), NAME)
    file = _locked(path, folder, shared, flag)
    try:
        if file:
            _describe(file, what)
        yield
    finally:
        if file:
            _release(file, path)


def require_unlocked(folder, flag="--out_dir"):
    """Raise `UserError` if another run holds the lock of a folder; the folder need not exist, and nothing changes."""
    path = os.path.join(str(folder), NAME)
    if is_local(folder) and os.path.exists(path):
        file = _locked(path, folder, True, flag)
        if file:
            file.close()


def _locked(path, folder, shared, flag):
    """Return the open file of the lock, or None on a file system without locks."""
    while True:
        with writing(path):
            file = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                raise _taken(file, folder, flag) from error
        except OSError as error:
            file.close()
            if error.errno not in _WITHOUT_LOCKS:
                raise
            tqdm.write(
                f"{folder}: this file system has no locks ({error.strerror}). Take care that no other run uses it.",
                file=sys.stderr,
            )
            return None
        # The run before may have removed the file between opening and locking; its name is then that of a new file.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break
        file.close()
    # A data loader's process must not keep the lock of a training that was killed.
    os.register_at_fork(after_in_child=file.close)
    return file


def _describe(file, what):
    """Write into the lock's file who holds it."""
    holder = {"what": what, "pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    # On a full disk the lock still holds, and only the message to another run is shorter.
    with contextlib.suppress(OSError):
        file.seek(0)
        file.truncate()
        file.write(json.dumps(holder))
        file.flush()


def _taken(file, folder, flag):
    """Return the `UserError` for a folder that another run has locked; file: the lock's, which names that run."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
        found = f"{holder['what']} that runs there, process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        found = "another run that works there"
    return found_expected(
        f"{flag} {folder}",
        found,
        "a folder that no other run uses",
        "Wait for its end or stop it, or choose another folder.",
    )


def _release(file, path):
    """Remove the lock's file, unless others share the lock, and free the lock."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.remove(path)
    with contextlib.suppress(OSError):  # what `_describe` could not write on a full disk
        file.close()

"""Room on disks and in memory: what is free, and the errors of a full disk and of memory that ran out."""

import contextlib
import errno
import os
import re
import shutil
from contextvars import ContextVar
from pathlib import Path

from safetensors import SafetensorError

from guided_diffusion_core.errors import UserError, found_expected

# The disk is full, the user's share of it is used up, or files may not become as large.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# In the messages of PyTorch and Jittor, their libraries included, when memory of a GPU or of the machine runs out.
LACK = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "memory is overflow")
# What the user does when there is room again; a run puts its own flag here.
_THEN = ContextVar("then", default=lambda: "start the same command again")


class NoRoom(UserError):
    """The error of a file that finds no room on its disk."""

    def __init__(self, message):
        super().__init__(message)
        self._then = _THEN.get()

    def __str__(self):
        # The advice is asked for last: a training may write a checkpoint between the error and its message.
        return f"{self.args[0]} Make room, then {self._then()}."


def is_full(error):
    """Return whether an error of writing means that there is no room.

    error: OSError, or `SafetensorError`, whose text ends in the number of the system's error.
    """
    if isinstance(error, SafetensorError):
        number = re.search(r"os error (\d+)", str(error))
        return number is not None and int(number.group(1)) in FULL
    return isinstance(error, OSError) and error.errno in FULL


def no_room(where, error, needed=0):
    """Return the `NoRoom` of a file or folder.

    where:  the path.
    error:  of the system, for its reason.
    needed: bytes that are written; 0 for a few.
    """
    reason = os.strerror(error.errno) if isinstance(error, OSError) else str(error)
    room = f"room for {size_text(needed)}" if needed else "room for a line"
    return NoRoom(f"{where}: found {size_text(free_bytes(where))} free ({reason}); expected {room}.")


@contextlib.contextmanager
def continued_by(then):
    """Say in every `NoRoom` of the block what the user does when there is room.

    then: function that returns it, such as "go on with --resume last".
    """
    token = _THEN.set(then)
    try:
        yield
    finally:
        _THEN.reset(token)


class NoMemory(UserError):
    """The error of a computation for which the memory of a GPU, or of this machine, does not suffice."""


def lacks_memory(error):
    """Return whether an exception means that memory ran out."""
    if isinstance(error, (MemoryError, NoMemory)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in LACK)


@contextlib.contextmanager
def memory_for(where, asked, remedy):
    """Turn the exception of memory that ran out in the block into a `NoMemory`.

    where:  what computes, such as "training".
    asked:  what it computes at once, in words.
    remedy: function that returns what the user can do, as an imperative sentence.
    """
    try:
        yield
    except (MemoryError, NoMemory, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        found = f"no memory left for {asked}{_reason(error)}"
        raise found_expected(where, found, "room for it", remedy(), NoMemory) from error


def no_memory(error):
    """Return the `NoMemory` of a whole command, of an exception that nothing nearer to it explains."""
    return found_expected(
        "memory",
        f"none left{_reason(error)}",
        "room for what the command computes",
        "Free some, or give another --device.",
        NoMemory,
    )


def _reason(error):
    """Return the first line of an exception of memory in brackets, "" for one without a text."""
    text = error.parts[1] if isinstance(error, NoMemory) else str(error).strip().partition("\n")[0]
    return f" ({text[:200]})" if text else ""


def free_bytes(path):
    """Return the bytes that a user may still write where a file or folder is, or would be made."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def size_text(count):
    """Return a number of bytes as a text, such as "1.7 GiB"."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def memory_limit():
    """Return the bytes of memory that this process can have: the machine's or its control group's, and swap."""
    machine = _meminfo()
    limit = min([machine["MemTotal"], *_group_limits()])
    return limit + machine.get("SwapTotal", 0)


def _meminfo():
    """Return name -> bytes of /proc/meminfo."""
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {name.rstrip(":"): 1024 * int(value) for name, value, *unit in rows if unit}


def _group_limits():
    """Return the limits in bytes of the control groups that this process is in; none without a limit."""
    limits = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            top = Path("/sys/fs/cgroup")
            name = "memory.max"
        elif "memory" in controllers.split(","):
            top = Path("/sys/fs/cgroup/memory")
            name = "memory.limit_in_bytes"
        else:
            continue
        # A limit of a group holds for the groups in it. A container sees its own group as the top.
        folder = top / group.lstrip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(top):
                break
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                limits.append(int((place / name).read_text()))
    return limits

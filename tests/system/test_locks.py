"""Test the lock of a run's folder: one run at a time, freed however its process ends."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys

import pytest
from support.backends import ROOT

from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system.locks import NAME, locked_folder, require_unlocked

HOLD = """
import os, sys, time
from guided_diffusion_core.system.locks import locked_folder
with locked_folder({folder!r}, "a training"):
    if {forks}:
        child = os.fork()
        if not child:
            print(os.getpid(), flush=True)
            time.sleep(60)
            os._exit(0)
    else:
        print("held", flush=True)
    time.sleep(60)
"""


def holder(folder, forks=False):
    """Start a process that holds the lock of a folder, and return it with the line that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(folder=str(folder), forks=forks)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
    )
    return process, process.stdout.readline().strip()


def refused(folder, shared=False):
    with pytest.raises(UserError) as error, locked_folder(folder, "another", shared=shared):
        pass
    return str(error.value)


def test_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path):
    with locked_folder(tmp_path, "a sampling"):
        message = refused(tmp_path)
        with locked_folder(tmp_path / "other", "a training"):
            pass
    assert f"process {os.getpid()} on {platform.node()} since" in message and "a sampling" in message
    assert f"--out_dir {tmp_path}" in message
    with locked_folder(tmp_path, "the next"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["other"], "the lock leaves no file"


def test_looking_at_a_lock_changes_nothing(tmp_path):
    require_unlocked(tmp_path / "missing")
    require_unlocked(tmp_path)
    assert not list(tmp_path.iterdir())
    with locked_folder(tmp_path, "a training"), pytest.raises(UserError, match="a training that runs there"):
        require_unlocked(tmp_path)
    (tmp_path / NAME).write_text("of a killed run")
    require_unlocked(tmp_path)
    assert (tmp_path / NAME).read_text() == "of a killed run"


def test_runs_that_share_keep_others_out_until_the_last_one_ends(tmp_path):
    with locked_folder(tmp_path, "part 0", shared=True):
        with locked_folder(tmp_path, "part 1", shared=True):
            refused(tmp_path)
        refused(tmp_path)
    with locked_folder(tmp_path, "a training"):
        refused(tmp_path, shared=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_holds_no_lock(tmp_path, number):
    process, line = holder(tmp_path)
    assert line == "held" and f"process {process.pid} on" in refused(tmp_path)
    process.send_signal(number)
    process.wait()
    assert (tmp_path / NAME).exists() == (number != signal.SIGINT)
    with locked_folder(tmp_path, "the next"):
        refused(tmp_path)


def test_a_child_that_outlives_a_killed_run_does_not_keep_its_lock(tmp_path):
    process, child = holder(tmp_path, forks=True)
    try:
        process.kill()
        process.wait()
        os.kill(int(child), 0)
        with locked_folder(tmp_path, "the next"):
            pass
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_an_error_in_the_block_frees_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), locked_folder(tmp_path, "a training"):
        raise ZeroDivisionError
    with locked_folder(tmp_path, "the next"):
        pass


@pytest.mark.parametrize("content", ["", "cut {", "[]"])
def test_a_lock_that_does_not_say_whose_it_is(tmp_path, content):
    with locked_folder(tmp_path, "a training"):
        (tmp_path / NAME).write_text(content)
        assert "another run that works there" in refused(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys, number):
    def without(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    with locked_folder(tmp_path, "a training"):
        pass
    assert "this file system has no locks" in capsys.readouterr().err


def test_a_name_that_is_taken_between_opening_and_locking(tmp_path, monkeypatch):
    """Remove the file in that moment, as the end of the run before does: the lock is that of the name."""
    flock = fcntl.flock
    removed = []

    def late(file, operation):
        if not removed:
            removed.append(True)
            (tmp_path / NAME).unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked_folder(tmp_path, "a training"):
        assert (tmp_path / NAME).exists()
        refused(tmp_path)


def test_buckets_have_no_locks():
    with locked_folder("gs://bucket/masks", "a sampling"), locked_folder("gs://bucket/masks", "a sampling"):
        pass

"""Disks that are too small, for the tests of full disks."""

import contextlib
import resource
import shutil
import subprocess

import pytest


@contextlib.contextmanager
def files_up_to(size):
    """Let no file of this process grow beyond a number of bytes; Python ignores the signal and gets the error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(folder, kib):
    """Mount a file system of a size in memory on a folder; without the right to mount, the test is skipped."""
    folder.mkdir(exist_ok=True)
    if not shutil.which("mount"):
        pytest.skip("no mount on PATH")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], text=True, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted ({mounted.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)

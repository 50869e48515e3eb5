"""Checks of the machine before anything is installed or compiled.

The Makefile runs `python3 -m guided_diffusion_core.system.environment FOLDER` with the system's Python
before anything is installed. So this module uses only the standard library.
"""

import os
import shutil
import sys
import sysconfig
from importlib import util
from pathlib import Path

from guided_diffusion_core.errors import UserError, found_expected

PYTHON_VERSIONS = ((3, 11), (3, 12))  # Jittor 1.3.11 fails on 3.13; the pinned packages need 3.11
# The virtual environment takes 1.6 GB with a CPU build of torch, and as much again while packages are
# unpacked; the rest is for Jittor's cache.
NEEDED_BYTES = 4 * 2**30

PYTHON = "python{}.{}".format(*sys.version_info[:2])


def check_python():
    """Raise `UserError` unless every pinned package supports this version of Python."""
    low, high = PYTHON_VERSIONS
    if not low <= sys.version_info[:2] <= high:
        raise found_expected(
            sys.executable,
            "Python {}.{}".format(*sys.version_info[:2]),
            "Python 3.11 or 3.12",
            "Install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv python3.11-dev) "
            "and run: make PYTHON=python3.11 ...",
        )


def check_compiler():
    """Raise `UserError` unless there is a C++ compiler; Jittor builds its operators with it."""
    compiler = os.environ.get("cc_path") or "g++"
    if not shutil.which(compiler):
        raise found_expected(
            compiler,
            "no such program",
            "a C++ compiler, with which Jittor builds its operators",
            "Install it: apt-get install g++",
        )


def python_config():
    """Return the path of the `python3.X-config` of the Python that this virtual environment is made from.

    Raises `UserError` if it or Python.h is missing.
    """
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    bin_folder = Path(sys.base_prefix) / "bin"
    candidates = [bin_folder / f"{PYTHON}-config", bin_folder / "python3-config"]
    found = [path for path in candidates if path.is_file()]
    if not header.is_file() or not found:
        raise found_expected(
            header if not header.is_file() else candidates[0],
            "no such file",
            "the headers of Python, which Jittor compiles against",
            f"Install them: apt-get install {PYTHON}-dev",
        )
    return str(found[0])


def check_venv():
    """Raise `UserError` unless this Python can make a virtual environment with pip inside."""
    if util.find_spec("venv") is None or util.find_spec("ensurepip") is None:
        raise found_expected(
            sys.executable,
            "no module ensurepip",
            "a Python that can make virtual environments",
            f"Install it: apt-get install {PYTHON}-venv",
        )


def check_disk(folder):
    """Raise `UserError` unless the file system of `folder` has room for the packages."""
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise found_expected(
            os.path.abspath(folder),
            f"{free / 2**30:.1f} GB free",
            f"at least {NEEDED_BYTES / 2**30:.0f} GB",
            "Make room or clone to a larger disk.",
        )


def main(folder):
    """Run all checks, print one message for each missing thing and return the exit code (0 or 2)."""
    problems = []
    for check in (check_python, check_venv, check_compiler, python_config, lambda: check_disk(folder)):
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or ["."]))

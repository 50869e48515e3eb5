"""What has to be on the machine before anything is installed or compiled.

Run as `python3 -m guided_diffusion_core.system.environment FOLDER` by the Makefile, with the system's
Python and nothing installed, so it uses the standard library alone.
"""

import os
import shutil
import sys
import sysconfig
from importlib import util
from pathlib import Path

from guided_diffusion_core.errors import UserError, found_expected

PYTHON_VERSIONS = ((3, 11), (3, 12))  # Jittor 1.3.11 fails on 3.13; the pinned packages need 3.11
NEEDED_BYTES = 4 * 2**30  # .venv 1.6 GB with a CPU build of torch and as much while unpacking, Jittor's cache

PYTHON = "python{}.{}".format(*sys.version_info[:2])


def check_python():
    """Raise `UserError` unless this Python is one that every pinned package supports."""
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
    """Raise `UserError` unless there is a C++ compiler, with which Jittor builds its operators."""
    compiler = os.environ.get("cc_path") or "g++"
    if not shutil.which(compiler):
        raise found_expected(
            compiler,
            "no such program",
            "a C++ compiler, with which Jittor builds its operators",
            "Install it: apt-get install g++",
        )


def python_config():
    """Path of the `python3.X-config` of the Python under this virtual environment.

    Raises `UserError` if it or Python.h is missing.
    """
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    beside = [Path(sys.base_prefix) / "bin" / f"{name}-config" for name in (PYTHON, "python3")]
    found = [path for path in beside if path.is_file()]
    if not header.is_file() or not found:
        raise found_expected(
            header if not header.is_file() else beside[0],
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
            "one that makes virtual environments",
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
    """Check everything; return the exit code, after one message per missing thing."""
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

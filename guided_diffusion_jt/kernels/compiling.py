"""Settings of Jittor's compilation: the same operators in less time.

Headers. g++ spends half of the time of Jittor itself, and four fifths of that of an operator, on reading the same
headers again. Here it reads them once, from a precompiled form (`-include`, GCC's manual, "Using Precompiled
Headers"). If that form does not fit a file, g++ reads the header instead: slower, with the same result.

Assembly. Each operator goes through Jittor's asm_tuner.py, which starts Python, lets g++ write assembly with debug
symbols and edits it where the source says "@begin" (`use_movnt_pass.cc`, off unless set). Operators without that word
go to g++ directly: half of the remaining time of an operator, and nine tenths of its disk space.

Optimisation. Jittor itself is compiled with -O1, in three quarters of the time of -O2. It only arranges the work of
the operators, which keep -Ofast. A training step of a small network (64 px, width 32) takes 0.66 s with either.
"""

import os
import platform
import shlex
import subprocess
import sys
import tempfile
from importlib import util
from pathlib import Path

from guided_diffusion_core.system.files import write_atomic
from guided_diffusion_jt.kernels import source

_LEVEL = "-O1"  # of optimisation, of Jittor itself
# Headers of this folder, for Jittor itself and for its operators. The names that the second one defines are those
# that Jittor defines at the top of each operator.
_CORE = "core.h"
_OPERATORS = "operators.h"
# Jittor runs: interpreter, asm_tuner.py, --cc_path=COMPILER, SOURCE, the compiler's options.
_SCRIPT = "operator.sh"
_INTERPRETER = "MEDSEGDIFF_OPERATOR_PYTHON"  # the variable with the path of the first one, for the script


def prepare_core(cache):
    """Let Jittor, which is imported next, compile itself with the header of its core.

    cache: Path of its compiled code.
    Other compilers than g++ are left alone. So are flags that the user has set (`cc_flags`, `kernel_flags`), and all
    flags where nvcc would get them too (`nvcc_path`).
    """
    if (
        not os.path.basename(os.environ["cc_path"]).startswith("g++")
        or os.environ["nvcc_path"]
        or "cc_flags" in os.environ
        or "kernel_flags" in os.environ
    ):
        return
    os.environ["cc_flags"] = _core_flags(cache)
    os.environ["kernel_flags"] = "-Ofast"  # Jittor's own, which it leaves out where cc_flags has an -O
    for name in (_CORE, _OPERATORS):
        _write(cache / name, source(name))
    if not any(_core_flags(cache) in key.read_text() for key in cache.glob("jittor_core*.so.key")):
        package = Path(util.find_spec("jittor").submodule_search_locations[0])
        python = subprocess.run([os.environ["python_config_path"], "--includes"], capture_output=True, text=True)
        native = ["-march=native"] if platform.machine() == "x86_64" else []
        _precompile(
            cache / _CORE,
            ["-std=c++14", "-fPIC", *native, _LEVEL, f"-I{package}/src", f"-I{package}/extern", *python.stdout.split()],
        )


def prepare_operators(flags, cache):
    """Let the imported Jittor compile operators with their own header and without asm_tuner.py.

    flags: `jt.flags`. cache: Path of its compiled code.
    """
    if _core_flags(cache) not in flags.cc_flags:
        return
    del os.environ["cc_flags"], os.environ["kernel_flags"]  # processes that this one starts may have another cache
    _compiled(cache / _CORE).unlink(missing_ok=True)  # 80 MB that are not read again
    flags.cc_flags = flags.cc_flags.replace(_core_flags(cache), _flag(cache / _OPERATORS))
    if not _compiled(cache / _OPERATORS).is_file():
        linker = ("-l", "-L", "-Wl,", "-shared")
        kept = [word for word in shlex.split(flags.cc_flags) if not word.startswith(linker)]
        at = kept.index("-include")
        _precompile(cache / _OPERATORS, [*kept[:at], *kept[at + 2 :]])
    # In the environment, not in the script: other interpreters share the cache, and may be gone tomorrow.
    os.environ[_INTERPRETER] = flags.python_path
    _write(cache / _SCRIPT, source(_SCRIPT))
    flags.python_path = f'/bin/sh "{cache / _SCRIPT}"'


def _core_flags(cache):
    return f"{_flag(cache / _CORE)} {_LEVEL}"


def _flag(header):
    return f'-include "{header}"'


def _compiled(header):
    return header.with_name(header.name + ".gch")


def _write(path, text):
    if not path.is_file() or path.read_text() != text:
        _compiled(path).unlink(missing_ok=True)
        write_atomic(path, text.encode())


def _precompile(header, flags):
    with tempfile.TemporaryDirectory(dir=header.parent, prefix=".") as room:  # whole or not at all
        made = Path(room) / "made.gch"
        done = subprocess.run([os.environ["cc_path"], "-x", "c++-header", str(header), *flags, "-o", str(made)])
        if done.returncode == 0:
            os.replace(made, _compiled(header))
        else:
            sys.stderr.write(f"g++ could not compile {header} (exit code {done.returncode}): compiling takes longer.\n")

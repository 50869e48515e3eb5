"""The start of Jittor on various machines, and how it compiles itself and its operators."""

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.backends import BACKENDS, ROOT

needs_jittor = pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor is not among MEDSEGDIFF_BACKENDS")


def start_jittor(code="print('started')", **variables):
    """Start Jittor in a fresh process, run the code, and return exit code, standard output and standard error."""
    environ = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", f"from guided_diffusion_jt import runtime\nruntime.start()\n{code}"],
        cwd=ROOT,
        env={name: value for name, value in environ.items() if value is not None},
        text=True,
        capture_output=True,
    )
    return done.returncode, done.stdout, done.stderr


@needs_jittor
def test_start_is_silent_and_uses_onednn():
    unset = dict.fromkeys(("use_mkl", "nvcc_path", "FIX_TORCH_ERROR", "log_silent", "python_config_path"))
    code = "import sys; print(bool(runtime.jt.mkl_ops), 'torch' in sys.modules)"
    assert start_jittor(code, **unset) == (0, "True False\n", "")


@needs_jittor
def test_missing_compiler_names_the_package(tmp_path):
    code, out, err = start_jittor(PATH=str(tmp_path), cc_path=None)
    assert code != 0 and out == "" and "g++: found no such program" in err and "apt-get install g++" in err


@needs_jittor
def test_unwritable_home_is_a_clear_error(tmp_path):
    (tmp_path / ".cache").write_text("a file where the cache should be")
    code, out, err = start_jittor(HOME=str(tmp_path), JITTOR_HOME=None)
    assert code != 0 and out == "" and "Set HOME to a writable folder" in err


@needs_jittor
def test_rebuilt_core_does_not_end_the_process(tmp_path):
    """Take a Jittor that exits with code 0 on its first import, as a stale one does."""
    package = tmp_path / "jittor"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import pathlib, sys\nmark = pathlib.Path(__file__).with_name('mark')\n"
        "if not mark.exists():\n    mark.touch()\n    sys.exit(0)\n__version__ = 'fake'\n"
        "class flags:\n    cc_flags = ''\n"
    )
    code, out, err = start_jittor("print(runtime.jt.__version__)", PYTHONPATH=str(tmp_path))
    assert (code, out) == (0, "fake\n"), err


@needs_jittor
def test_core_that_stays_stale_is_an_error(tmp_path):
    package = tmp_path / "jittor"
    package.mkdir()
    (package / "__init__.py").write_text("import sys\nsys.exit(0)\n")
    code, out, err = start_jittor(PYTHONPATH=str(tmp_path))
    assert code != 0 and out == "" and "Run the command again" in err


@pytest.fixture
def start():
    if "jittor" not in BACKENDS:
        pytest.skip("Jittor is not among MEDSEGDIFF_BACKENDS")
    from guided_diffusion_jt import runtime

    runtime.start()
    return runtime


@pytest.fixture
def loading(start):
    """Return the module that imports Jittor."""
    from guided_diffusion_jt.kernels import loading

    return loading


@pytest.fixture
def no_flags(monkeypatch):
    """Remove the flags of the user.

    Each variable is set before it is deleted, so that monkeypatch also removes a value that a test sets.
    """
    for name in ("cc_flags", "kernel_flags"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_onednn_is_linked_and_stale_links_are_replaced(loading, tmp_path):
    folder = tmp_path / "mkl" / "dnnl"
    assert loading.link_onednn(folder)
    folder.joinpath("lib").unlink()
    folder.joinpath("lib").symlink_to(tmp_path / "moved away")
    assert loading.link_onednn(folder)
    assert (folder / "lib" / "libmkldnn.so").is_file() and (folder / "include" / "dnnl.h").is_file()
    assert sorted(path.name for path in folder.iterdir()) == ["include", "lib"]


def test_onednn_is_linked_by_several_processes_at_once(loading, tmp_path):
    results = []
    threads = [threading.Thread(target=lambda: results.append(loading.link_onednn(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


def test_downloaded_onednn_is_left_alone(loading, tmp_path):
    for name, file in (("lib", "libmkldnn.so"), ("include", "dnnl.h")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("downloaded")
    assert loading.link_onednn(tmp_path)
    assert (tmp_path / "lib" / "libmkldnn.so").read_text() == "downloaded"


@pytest.mark.usefixtures("no_flags")
def test_missing_onednn_is_said_in_one_line(loading, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("use_mkl", raising=False)
    absent = {name: ("no-such-wheel", file) for name, (_, file) in loading._ONEDNN.items()}
    monkeypatch.setattr(loading, "_ONEDNN", absent)
    monkeypatch.setattr(loading, "_onednn_folder", lambda: str(tmp_path / "dnnl"))
    loading.prepare()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "about 100 times slower" in said and "pip install onednn-cpu-gomp" in said
    assert os.environ["use_mkl"] == "0"


def test_loading_computes_no_random_initial_values(start):
    layers = start.jt.nn.Sequential(start.jt.nn.Conv(3, 5, 3), start.jt.nn.Conv(5, 2, 3))
    with start.jt.profile_scope() as report:
        start.load_state(
            layers,
            {
                "0.weight": np.ones((5, 3, 3, 3)),
                "0.bias": np.ones(5),
                "1.weight": np.ones((2, 5, 3, 3)),
                "1.bias": np.ones(2),
            },
        )
    assert not [row[0] for row in report if row[0].startswith("random")]
    assert all((value.numpy() == 1).all() for value in layers.parameters())


# ---- Compiling ----


def read_headers(command, folder):
    """Return g++'s list of the headers that it reads, with "! FILE" for a precompiled one."""
    done = subprocess.run([*command, "-H", "-c", "-o", str(folder / "out.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_operators_are_compiled_with_a_precompiled_header(start, tmp_path):
    operator = tmp_path / "a_op.cc"
    operator.write_text(
        '#define JIT 1\n#define JIT_cpu 1\n#include <cmath>\n#include "var.h"\nint one() { return 1; }\n'
    )
    words = [word for word in shlex.split(start.jt.flags.cc_flags) if not word.startswith(("-l", "-shared"))]
    header = words[words.index("-include") + 1]
    assert f"! {header}.gch" in read_headers(["g++", str(operator), *words], tmp_path)
    assert [word for word in words if word.startswith("-O")] == ["-Ofast"]
    assert "cc_flags" not in os.environ and "kernel_flags" not in os.environ


@pytest.mark.parametrize("asked", [False, True])
def test_operators_meet_asm_tuner_only_where_they_ask_for_it(start, tmp_path, asked):
    """Require the same machine code without it."""
    jt = start.jt
    code = {}
    flags = " ".join(word for word in jt.flags.cc_flags.split() if not word.startswith("-l"))
    for name, interpreter in (("ours", jt.flags.python_path), ("jittor", sys.executable)):
        source = tmp_path / name / "a_op.cc"
        source.parent.mkdir()
        source.write_text(f"""#include "var.h"
            namespace jittor {{
            void jit_run(float* __restrict__ x, float* __restrict__ y) {{
                {'//@begin replace "vmova" "vmovnt"' if asked else ""}
                for (int i = 0; i < 1024; i++) x[i] = y[i] * 2;
                {"//@end" if asked else ""}
            }} }}""")
        made = source.with_name("a_op.so")
        subprocess.run(
            f'{interpreter} {jt.flags.jittor_path}/utils/asm_tuner.py --cc_path="{jt.flags.cc_path}" '
            f'"{source}" {flags} -o "{made}"',
            shell=True,
            check=True,
        )
        code[name] = subprocess.run(
            ["objdump", "-d", "--no-addresses", "--section=.text", str(made)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.partition("<")[2]
        assert source.with_name("a_op.s").exists() == (asked or name == "jittor")
    assert "vaddps" in code["ours"] and code["ours"] == code["jittor"]


@pytest.mark.usefixtures("no_flags")
def test_jittor_itself_is_compiled_with_a_precompiled_header(start, tmp_path):
    """Repeat the command that compiled the core's event queue, with a new header."""
    from guided_diffusion_jt.kernels import compiling

    compiling.prepare_core(tmp_path)
    assert os.environ["cc_flags"] == f'-include "{tmp_path}/core.h" -O1'
    command = shlex.split(
        (Path(start.jt.flags.cache_path) / "obj_files" / "event_queue.cc.o.key").read_text().splitlines()[0]
    )
    command[command.index("-include") + 1] = f"{tmp_path}/core.h"
    del command[command.index("-o") :]
    assert f"! {tmp_path}/core.h.gch" in read_headers(command, tmp_path)


@pytest.mark.usefixtures("no_flags")
@pytest.mark.parametrize("flags,again", [('-include "{}/core.h" -O1', False), ('-include "{}/core.h"', True)])
def test_header_of_the_core_is_made_again_for_other_flags_alone(start, tmp_path, monkeypatch, flags, again):
    from guided_diffusion_jt.kernels import compiling

    made = []
    monkeypatch.setattr(compiling, "_precompile", lambda *words: made.append(words))
    (tmp_path / "jittor_core.so.key").write_text(f"g++ {flags.format(tmp_path)} -o x\n")
    compiling.prepare_core(tmp_path)
    assert bool(made) == again


@pytest.mark.usefixtures("no_flags")
@pytest.mark.parametrize(
    "name,value", [("cc_flags", "-O1"), ("kernel_flags", "-O3"), ("cc_path", "/usr/bin/clang++"), ("nvcc_path", "nvcc")]
)
def test_other_compilers_and_flags_of_the_user_are_left_alone(start, tmp_path, monkeypatch, name, value):
    from guided_diffusion_jt.kernels import compiling

    monkeypatch.setenv(name, value)
    compiling.prepare_core(tmp_path)
    flags = {name: os.environ[name] for name in ("cc_flags", "kernel_flags") if name in os.environ}
    assert flags == ({name: value} if "flags" in name else {}) and not any(tmp_path.iterdir())


@needs_jittor
@pytest.mark.parametrize(
    "code, error",
    [
        ("import os; os._exit(3)", "a process on it ended with exit code 3"),
        ("os.kill(os.getpid(), 9)", "a process on it ended with exit code -9"),
        ("1 / 0", "division by zero"),
        ("raise RuntimeError('no kernel\\nand more')", "no kernel"),
        ("found = 3", ""),
    ],
)
def test_a_device_may_fail_in_any_way(monkeypatch, code, error):
    """Let Jittor fail, or end its process, where it computes. This process goes on as before."""
    from guided_diffusion_jt import runtime

    monkeypatch.setattr(runtime, "_TRIAL", runtime._TRIAL.replace("    ones = ", f"    import os; {code}\n    ones = "))
    before = dict(os.environ)
    assert runtime.try_device("cpu") == error
    assert os.environ == before and runtime.device() == "cpu"


@needs_jittor
def test_a_wrong_number_is_an_error(monkeypatch):
    from guided_diffusion_jt import runtime

    monkeypatch.setattr(runtime, "_TRIAL", runtime._TRIAL.replace("9 * 36", "9 * 37"))
    assert runtime.try_device("cpu") == "a convolution of ones gave 324.0"


@needs_jittor
def test_a_jittor_that_was_imported_without_cuda_stays_on_the_cpu():
    gpus = (
        "from guided_diffusion_jt.kernels import cuda\nfrom guided_diffusion_core.system.devices import Found\n"
        "cuda.find_devices = lambda: Found(('A100',))\n"
    )
    code = f"{gpus}runtime.start(device='auto')\nprint(runtime.current.device)"
    assert start_jittor(code)[:2] == (0, "cpu (this process has imported Jittor without CUDA)\n")
    code, _, err = start_jittor(f"{gpus}runtime.start(device='cuda')")
    assert code == 1 and "--device cuda: found no such device (this process has imported Jittor without CUDA)" in err

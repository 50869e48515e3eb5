"""The runtime of both backends: conversion, precision and state; and the start of Jittor on various machines."""

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.backends import BACKENDS, ROOT

from guided_diffusion_core.backends import BACKENDS as KNOWN
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system import environment

needs_jittor = pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor is not among MEDSEGDIFF_BACKENDS")


@pytest.fixture
def runtime(backend):
    return backend.module("runtime")


@pytest.fixture
def layer(backend):
    """Build a batch normalisation of 3 channels, with parameters, buffers and a counter."""
    return backend.module("nn").BatchNorm2d(3)


def has_gradient(backend, tensor):
    """Return whether a backward pass would reach the tensor."""
    return tensor.requires_grad if backend.name == "pytorch" else not tensor.is_stop_grad()


def new_state(layer, runtime, dtype=np.float64):
    """Return other values than those of the layer, by the same names; the counter is 5."""
    draw = np.random.default_rng(0)
    return {
        name: np.asarray(5) if value.shape == () else draw.standard_normal(value.shape).astype(dtype)
        for name, value in runtime.state_arrays(layer).items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool"])
def test_arrays_survive_the_round_trip(runtime, dtype):
    array = (np.arange(24).reshape(2, 3, 4) % 3 - 0.25).astype(dtype)[:, ::-1]
    back = runtime.to_numpy(runtime.to_tensor(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_float64_is_not_rounded_on_the_way(runtime):
    array = np.array([1 + 2.0**-50])
    assert runtime.to_numpy(runtime.to_tensor(array))[0] == array[0]


def test_dtype_can_be_chosen(runtime):
    assert runtime.to_numpy(runtime.to_tensor([1, 2], dtype="float32")).dtype == np.float32


def test_tensors_do_not_share_the_arrays_memory(runtime):
    array = np.zeros(3, np.float32)
    tensor = runtime.to_tensor(array)
    array[:] = 1
    values = runtime.to_numpy(tensor)
    values[:] = 2
    np.testing.assert_array_equal(runtime.to_numpy(tensor), np.zeros(3))


def test_computation_in_float64(runtime, float64):
    tensor = runtime.to_tensor(np.array([1 + 2.0**-40]))
    assert runtime.precision() == "float64"
    assert runtime.to_numpy(tensor * tensor - tensor)[0] == pytest.approx(2.0**-40, rel=1e-9)


def test_float32_is_the_precision_at_the_start(runtime):
    assert runtime.precision() == "float32"


def test_nothing_is_recorded_under_no_grad(backend, runtime, layer):
    x = runtime.to_tensor(np.ones((2, 3, 4, 4), np.float32))
    with runtime.no_grad():
        frozen = layer(x)
    recorded = layer(x)
    assert has_gradient(backend, recorded) and not has_gradient(backend, frozen)


def test_state_has_the_originals_names_and_shapes(runtime, layer):
    state = runtime.state_arrays(layer)
    assert {name: (value.shape, str(value.dtype)) for name, value in state.items()} == {
        "weight": ((3,), "float32"),
        "bias": ((3,), "float32"),
        "running_mean": ((3,), "float32"),
        "running_var": ((3,), "float32"),
        "num_batches_tracked": ((), "int64"),
    }


def test_loaded_state_is_the_given_one(runtime, layer):
    given = new_state(layer, runtime)
    runtime.load_state(layer, given)
    state = runtime.state_arrays(layer)
    for name, value in given.items():
        assert state[name].dtype == (np.int64 if value.shape == () else np.float32)
        np.testing.assert_array_equal(state[name], value.astype(state[name].dtype))


def test_loading_leaves_what_is_trained_as_it_was(backend, runtime, layer):
    runtime.load_state(layer, new_state(layer, runtime))
    assert has_gradient(backend, layer.weight) and has_gradient(backend, layer.bias)
    assert not has_gradient(backend, layer.running_mean)


def test_state_is_loaded_in_the_set_precision(runtime, float64, backend):
    layer = backend.module("nn").BatchNorm2d(3)
    given = new_state(layer, runtime)
    runtime.load_state(layer, given)
    state = runtime.state_arrays(layer)
    assert state["weight"].dtype == np.float64 and state["weight"][0] == given["weight"][0]


def test_wrong_state_is_refused_and_changes_nothing(runtime, layer):
    before = runtime.state_arrays(layer)
    given = new_state(layer, runtime)
    given["extra"] = np.zeros(1)
    given["weight"] = np.zeros(4)
    del given["bias"]
    with pytest.raises(UserError) as error:
        runtime.load_state(layer, given, where="model.safetensors")
    assert all(word in str(error.value) for word in ("model.safetensors", "extra", "weight", "bias"))
    for name, value in runtime.state_arrays(layer).items():
        np.testing.assert_array_equal(value, before[name])


def test_versions_name_the_framework(runtime, backend):
    assert set(runtime.versions()) == {"python", "numpy", KNOWN[backend.name].framework}


# ---- Start ----


def python(code):
    """Run code in a fresh process and return the last line that it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_further_start_changes_the_settings_alone(backend, runtime):
    runtime.start(threads=1)
    weights = backend.module("nn").BatchNorm2d(3)
    runtime.start(precision="float64")
    assert runtime.started() and runtime.precision() == "float64"
    runtime.start()
    assert runtime.precision() == "float32"
    assert set(runtime.state_arrays(weights)) >= {"weight", "bias"}


@pytest.mark.parametrize("device", ["cuda", "tpu", ""])
def test_another_device_than_the_cpu_is_refused(runtime, device):
    with pytest.raises(UserError, match=f"--device: found '{device}'; expected one of cpu"):
        runtime.start(device=device)


@needs_jittor
@pytest.mark.parametrize("imports", ["import guided_diffusion_jt", "from guided_diffusion_jt import runtime"])
def test_import_loads_no_jittor(imports):
    watched = "{name for name in sys.modules if name.startswith('jittor')}"
    environment = "os.environ == before"
    code = f"import os, sys; before = dict(os.environ); {imports}; print({watched}, {environment})"
    assert python(code) == "set() True"


@needs_jittor
@pytest.mark.parametrize("module", ["unet", "nn", "optim", "train_util", "kernels.winograd"])
def test_a_module_that_is_imported_first_starts_jittor(module):
    code = f"import guided_diffusion_jt.{module}; from guided_diffusion_jt import runtime; print(runtime.started())"
    assert python(code) == "True"


@needs_jittor
def test_a_jittor_of_the_programs_own_is_taken_as_it_is():
    code = (
        "import os, sys, types; own = sys.modules['jittor'] = types.ModuleType('jittor'); before = dict(os.environ)\n"
        "from guided_diffusion_jt.runtime import jt; print(jt is own, before == os.environ)"
    )
    assert python(code) == "True True"


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
def test_import_leaves_the_allocator_as_it_is():
    """Require that the first module which needs the backend sets it."""
    code = (
        "from unittest import mock; from guided_diffusion_pt import runtime, unet\n"
        "from guided_diffusion_core.backends import backend_module\n"
        "with mock.patch.object(runtime, '_keep_freed_memory') as keep:\n"
        "    calls = [keep.call_count]\n"
        "    for name in ('unet', 'nn'):\n"
        "        backend_module('pytorch', name); calls.append(keep.call_count)\n"
        "print(calls)"
    )
    assert python(code) == "[0, 1, 1]"


# ---- Jittor's start ----


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


# ---- The machine ----


def test_machine_of_the_tests_is_complete():
    environment.check_python()
    environment.check_compiler()
    assert os.access(environment.python_config(), os.X_OK)


@pytest.mark.parametrize("version", [(3, 8), (3, 13)])
def test_unsuitable_python_is_refused(monkeypatch, version):
    monkeypatch.setattr(environment.sys, "version_info", (*version, 0))
    with pytest.raises(UserError, match="expected Python 3.11 or 3.12"):
        environment.check_python()


def test_missing_headers_name_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(environment.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(UserError, match=rf"Python.h: .*apt-get install {environment.PYTHON}-dev"):
        environment.python_config()


def test_full_disk_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "NEEDED_BYTES", 2**60)
    with pytest.raises(UserError, match="Make room"):
        environment.check_disk(tmp_path)
    assert environment.main(str(tmp_path)) == 2

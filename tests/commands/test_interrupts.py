"""Test Ctrl-C: at any moment of any command it ends the process with exit code 130 and without a traceback."""

import os
import signal
import subprocess
import sys
import time

import pytest
from support.backends import BACKENDS, ROOT
from support.conversions import CONFIG
from support.small import random_state

from guided_diffusion_core import checkpoints
from guided_diffusion_core.data import phantoms
from guided_diffusion_core.networks.registry import state_shapes

# Before Python has read the first line of a program, its own start may be interrupted. This marks the first line.
STARTED = "started"
RUN_MARKED = """
import os, sys
from guided_diffusion_core.system import quick_exit
entered = quick_exit.leaving_at_once
def marked():
    block = entered()
    class Marked:
        def __enter__(self):
            block.__enter__()
            os.write(1, b"{started}\\n")
        def __exit__(self, *error):
            return block.__exit__(*error)
    return Marked()
quick_exit.leaving_at_once = marked
import runpy
sys.path[:0] = ["scripts"]
sys.argv = {argv!r}
{run}
"""


def program(argv):
    """Return the code that runs a command line, `MODULE ...` or `SCRIPT.py ...`, and prints when it has started."""
    if not argv[0].endswith(".py"):
        run = f'runpy.run_module("{argv[0]}", run_name="__main__")'
    else:
        run = f'runpy.run_path("scripts/{argv[0]}", run_name="__main__")'
    return RUN_MARKED.format(started=STARTED, argv=argv, run=run)


def interrupted(argv, delay):
    """Press Ctrl-C `delay` seconds after the start of a command: (exit code, output). As a terminal does, the signal
    goes to all processes of the group."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program(list(map(str, argv)))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )
    assert process.stdout.readline() == f"{STARTED}\n"
    time.sleep(delay)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    return process.returncode, output


def assert_left_well(argv, delay, ends=(0,)):
    """Require exit code 130 and no traceback; a command that has ended earlier may have one of the codes `ends`."""
    code, output = interrupted(argv, delay)
    assert "Traceback" not in output and "KeyboardInterrupt" not in output, output
    # In its very last moments Python has no handler any more: the signal ends it, which a shell shows as 130 too.
    assert code in (130, -signal.SIGINT, *ends), (code, output)
    if code == 130:
        assert "Interrupted." in output
    return code


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    phantoms.write_image_phantoms(folder, 2, 32, 1)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "x.safetensors"
    state = random_state(state_shapes(CONFIG.model))
    path.write_bytes(checkpoints.to_bytes(2, CONFIG, "model", state))
    return path


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1, 0.25, 0.5])
@pytest.mark.parametrize(
    "argv",
    [
        ("medsegdiff", "train", "--help"),
        ("medsegdiff", "parity", "list"),
        ("segmentation_train.py", "--help"),
        ("parity", "list"),
        ("benchmarks", "--help"),
    ],
    ids=" ".join,
)
def test_while_a_command_starts(argv, delay):
    assert_left_well(argv, delay)


def test_the_earliest_moment_is_caught():
    assert assert_left_well(("medsegdiff", "doctor"), 0.0) == 130


@pytest.mark.parametrize("delay", [0.3, 0.8, 1.5, 3.0])
@pytest.mark.parametrize("name", BACKENDS)
def test_while_a_framework_is_imported(pictures, checkpoint, tmp_path, name, delay):
    argv = ["medsegdiff", "sample", "--backend", name, "--model_path", checkpoint]
    argv += ["--data_name", "IMAGES", "--data_dir", pictures, "--out_dir", tmp_path / "out", "--sample_steps", 50]
    assert_left_well(argv, delay, ends=(0, 2))


@pytest.mark.parametrize("delay", [0.3, 0.7, 1.2])
def test_while_processes_check_data(pictures, delay):
    assert_left_well(
        ["check_data.py", "--data_name", "IMAGES", "--data_dir", pictures, "--jobs", 2], delay, ends=(0, 1)
    )


def test_a_process_that_ignores_ctrl_c_goes_on():
    """The shell lets background processes and those behind nohup ignore it."""
    code = program(["medsegdiff", "--version"])
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert process.stdout.readline() == f"{STARTED}\n"
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and printed.startswith("medsegdiff ")


@pytest.mark.parametrize("swallowed", ["ImportError('numpy')", "ValueError()", "SystemError('in C')"])
def test_another_error_that_ctrl_c_has_caused(swallowed):
    code = (
        "import os, signal\nfrom guided_diffusion_core import command_line\n"
        "def main():\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n        import time; time.sleep(5)\n"
        f"    except KeyboardInterrupt:\n        raise {swallowed}\n"
        "command_line.run_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")

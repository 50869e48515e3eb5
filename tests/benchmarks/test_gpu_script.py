"""`benchmarks/gpu.sh`, whose work needs a GPU: what it refuses, its commands, what it does where a part fails."""

import os
import shlex
import subprocess
import sys

import pytest
from support.backends import ROOT

from benchmarks.program import COMMANDS as BENCHMARKS
from guided_diffusion_core.command_line import CommandParser, add_commands
from parity.program import COMMANDS as PARITY

SCRIPT = ROOT / "benchmarks" / "gpu.sh"

# An interpreter that claims to have a GPU. Its environments hold itself; it writes its arguments into a file, and fails
# for those that contain the text of FAILS.
STUB = """#!/usr/bin/env bash
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; exit; fi
printf '%q ' "$@" >>"$CALLS"; echo >>"$CALLS"
if [ -n "$FAILS" ] && [[ "$*" == *"$FAILS"* ]]; then echo "it broke" >&2; exit 1; fi
"""


def run(*arguments, **environment):
    return subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)], env={**os.environ, **environment}, text=True, capture_output=True
    )


@pytest.fixture
def imitated(tmp_path):
    """Return a function that runs the script with an imitated interpreter: (what is done, list of the commands)."""
    python = tmp_path / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    calls = tmp_path / "calls"

    def run_script(*arguments, fails="", **environment):
        done = run(tmp_path / "out", *arguments, PYTHON=str(python), CALLS=str(calls), FAILS=fails, **environment)
        return done, [shlex.split(line) for line in calls.read_text().splitlines()]

    return run_script


def parser_of(commands):
    parser = CommandParser()
    add_commands(parser, commands)
    return parser


def test_it_refuses_a_machine_without_a_gpu(tmp_path):
    done = run(tmp_path / "out", PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "found no PyTorch with a GPU" in done.stderr
    assert run().returncode == 2


def test_its_commands_have_flags_and_files_that_exist(imitated, tmp_path):
    (tmp_path / "original").mkdir()
    done, calls = imitated(tmp_path / "original")
    assert done.returncode == 0, done.stdout + done.stderr
    modules = [call[1] for call in calls if call[0] == "-m"]
    assert modules == ["pip", "pip", "medsegdiff", "pytest", "parity", "benchmarks", "benchmarks", "benchmarks"]
    for call in calls:
        if call[:2] == ["-m", "parity"]:
            parser_of(PARITY).parse_args(call[2:])
        elif call[:2] == ["-m", "benchmarks"]:
            given = parser_of(BENCHMARKS).parse_args(call[2:])
            assert given.device == "cuda:0" and given.peer == str(tmp_path / "original")
        elif call[:2] == ["-m", "pytest"]:
            files = [word for word in call if word.startswith("tests/")]
            assert len(files) == 3 and all((ROOT / file).is_file() for file in files)


def test_its_parts_may_take_ten_minutes_together():
    limits = [int(line.split()[2]) for line in SCRIPT.read_text().splitlines() if line.startswith("part ")]
    assert len(limits) == 6 and sum(limits) <= 600


def test_a_part_that_fails_does_not_stop_the_others(imitated):
    done, calls = imitated(fails="parity run")
    assert done.returncode == 1
    assert "parity: failed (exit code 1)" in done.stdout and "it broke" in done.stdout
    assert "cases: passed" in done.stdout
    assert sum(call[:2] == ["-m", "benchmarks"] for call in calls) == 3


def test_packages_come_from_a_folder_without_network(imitated, tmp_path):
    done, calls = imitated(fails="pip install", WHEELS=str(tmp_path))
    assert done.returncode == 2 and "set WHEELS" in done.stderr
    [first, *_] = [call for call in calls if call[:2] == ["-m", "pip"]]
    assert first[4:7] == ["--no-index", "--find-links", str(tmp_path)]

"""Test that a training that is killed at any moment goes on, and that no half of a file is taken for a whole one."""

import random
import subprocess
import sys
import time

import pytest
from support.backends import ROOT
from support.loops import whole_steps

from guided_diffusion_core import checkpoints
from guided_diffusion_core.training.log import read_log

KILLS = 6


def start(folder):
    return subprocess.Popen(
        [sys.executable, "tests/support/loops.py", str(folder)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for_step(folder, process, step):
    """Wait until the training has written a checkpoint after `step`."""
    while process.poll() is None:
        last = checkpoints.last_folder(folder)
        if last is not None and int(last.name.removeprefix("step_")) > step:
            return
        time.sleep(0.005)
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_random_moments(tmp_path, seed):
    """Kill a training that writes checkpoints all the time again and again; each start goes on from a later step."""
    moments = random.Random(seed)
    step = 0
    for kill in range(1, KILLS + 1):
        process = start(tmp_path)
        wait_for_step(tmp_path, process, step)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.wait()
        process.stderr.close()
        found = whole_steps(tmp_path)
        last = checkpoints.find_whole("last", tmp_path)
        later = int(last.name.removeprefix("step_"))
        # a kill between the rename and the pointer, or before the removal of the oldest one, leaves one more
        assert later in found and len(found) <= 2 + kill and later > step
        step = later
        logged = [line["step"] for line in read_log(tmp_path, step)]
        assert logged == list(range(1, logged[-1] + 1)) and logged[-1] >= step - 1
    unfinished = [path.name for path in (tmp_path / "checkpoints").iterdir() if "writing" in path.name]
    assert len(unfinished) <= 3, "those of earlier kills are removed"

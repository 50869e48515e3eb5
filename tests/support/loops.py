"""A training loop without a framework, for the tests of the run around it.

`python tests/support/loops.py FOLDER` trains with it in FOLDER until it is killed, as the command does. It goes on from
the last checkpoint if there is one.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support.small import small_config

from guided_diffusion_core import checkpoints, training
from guided_diffusion_core.system.processes import Alone

FLOATS = 10_000  # of one part of a checkpoint


class StepLoop:
    """A loop whose checkpoints hold its step in every number.

    step: number of steps so far. floats: size of a part of its checkpoints.
    """

    group = Alone()

    def __init__(self, step=0, floats=FLOATS):
        self.step = step
        self.floats = floats

    def run_loop(self, steps):
        while self.step < steps:
            self.step += 1
            yield self.step - 1, {"total": 1 / self.step, "lr": 1e-4}

    def gpu_memory_mib(self):
        return None

    def networks(self):
        weights = np.full(self.floats, self.step, np.float32)
        return {"model": {"a": weights}, "trainer": {"first_moment/a": weights}}


def whole_steps(folder):
    """Return the steps of all checkpoints of a run, each of which is whole and holds its step."""
    found = []
    for path in sorted((folder / "checkpoints").glob("step_*")):
        step, _, networks = checkpoints.load_all(checkpoints.find_whole(path, ""))
        assert set(networks["model"]["a"]) == set(networks["trainer"]["first_moment/a"]) == {step}
        found.append(step)
    return found


def train_forever(out_dir):
    """Train in a folder until the process is killed, with a checkpoint after every step."""
    config = small_config(max_steps=10**9, save_interval=1, log_interval=1, keep_checkpoints=2)
    step = 0
    start = checkpoints.last_folder(out_dir)
    if start:
        step, config, _, _ = training.resumed_config("last", out_dir, {})
    folder = training.RunFolder(out_dir, start)
    with folder.held():
        folder.prepare('{"model": 1, "training": 1}')
        training.run_training(StepLoop(step, floats=300_000), config, out_dir)


if __name__ == "__main__":
    train_forever(sys.argv[1])

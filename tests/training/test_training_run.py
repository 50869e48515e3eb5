"""Test the run around a training loop: log, checkpoints, losses that are not finite, Ctrl-C."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from unittest import mock

import numpy as np
import pytest
from support.backends import BACKENDS, ROOT, Backend
from support.small import NETWORK, small_config

from guided_diffusion_core import checkpoints, training
from guided_diffusion_core.data.phantoms import write_isic_phantoms
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system.processes import Alone
from guided_diffusion_core.training.values import StepValues


class FakeLoop:
    """A loop without a framework: the loss falls, and is NaN from a step on."""

    group = Alone()

    def __init__(self, nan_from=10**9, after_step=None):
        self.nan_from = nan_from
        self.after_step = after_step
        self.step = 0

    def run_loop(self, steps):
        for step in range(steps):
            yield step, {"total": float("nan") if step >= self.nan_from else 1 / (step + 1), "lr": 1e-4}
            if self.after_step:
                self.after_step(step)

    def gpu_memory_mib(self):
        return None

    def networks(self):
        return {"model": {"a": np.ones(2, np.float32)}, "ema_0.9999": {"a": np.zeros(2, np.float32)}}


def checkpoint_folders(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_log_and_checkpoints(tmp_path):
    config = small_config(max_steps=7, log_interval=3, save_interval=5)
    saved = training.run_training(FakeLoop(), config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 7]
    means = [(1 + 1 / 2 + 1 / 3) / 3, (1 / 4 + 1 / 5 + 1 / 6) / 3, 1 / 7]
    assert [line["total"] for line in lines] == pytest.approx(means)
    assert all(line["seconds"] > 0 and line["memory_mib"] > 1 for line in lines)
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == lines
    assert checkpoint_folders(tmp_path) == ["last", "step_000005", "step_000007"]
    assert saved == tmp_path / "checkpoints" / "step_000007"
    assert sorted(path.name for path in saved.iterdir()) == [
        "contents.json",
        "ema_0.9999.safetensors",
        "model.safetensors",
    ]


def test_nan_stops_training_and_leaves_the_checkpoints_before(tmp_path):
    config = small_config(max_steps=10, save_interval=1)
    with pytest.raises(UserError, match="step 3 gave total = nan; expected a finite number. Lower --lr"):
        training.run_training(FakeLoop(nan_from=2), config, tmp_path)
    assert checkpoint_folders(tmp_path) == ["last", "step_000001", "step_000002"]
    assert checkpoints.find(tmp_path).parent.name == "step_000002"


class Lagging(FakeLoop):
    """A loop whose values lie on a device; `read` lists (step, number of steps taken) of each reading."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.read = []

    def run_loop(self, steps):
        for step, values in super().run_loop(steps):
            self.step = step + 1
            yield step, StepValues(partial(self._read, step, values))

    def _read(self, step, values):
        self.read.append((step + 1, self.step))
        return values


def test_losses_are_read_only_for_lines_checkpoints_and_the_end(tmp_path):
    loop = Lagging()
    training.run_training(loop, small_config(max_steps=11, log_interval=4, save_interval=6), tmp_path)
    # 1 and 6 are timed as well
    steps_at = {1: 1, 2: 4, 3: 4, 4: 4, 5: 6, 6: 6, 7: 8, 8: 8, 9: 11, 10: 11, 11: 11}
    assert loop.read == list(steps_at.items())
    at_once = tmp_path / "read at once"
    at_once.mkdir()
    training.run_training(FakeLoop(), small_config(max_steps=11, log_interval=4), at_once)
    # without seconds and memory
    lines, expected = (
        [line.split(",")[3:] for line in (folder / "progress.csv").read_text().splitlines()]
        for folder in (tmp_path, at_once)
    )
    assert lines == expected and len(lines) == 4


@pytest.mark.parametrize("interval", ["log_interval", "save_interval", "val_interval"])
def test_no_checkpoint_and_no_validation_of_a_loss_that_is_not_finite(tmp_path, interval):
    settings = {"log_interval": 100, "save_interval": 100, "val_interval": 100, interval: 2}
    validation = mock.Mock(best=None)
    validation.is_due.return_value = False
    validation.is_best.return_value = False
    validation.state.return_value = None
    with pytest.raises(UserError, match="step 3 gave total = nan"):
        training.run_training(Lagging(nan_from=2), small_config(max_steps=10, **settings), tmp_path, validation)
    assert not (tmp_path / "checkpoints" / "step_000004").exists()


def test_values_of_a_step_are_read_once():
    asked = []
    values = StepValues(lambda: asked.append(None) or {"total": 0.5, "lr": 0.1})
    assert not asked
    assert values["total"] == 0.5 and dict(values) == {"total": 0.5, "lr": 0.1} and len(values) == 2
    assert len(asked) == 1


def test_ctrl_c_during_a_step_saves_that_step(tmp_path):
    def press(step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        training.run_training(FakeLoop(after_step=press), small_config(max_steps=10), tmp_path)
    assert checkpoint_folders(tmp_path) == ["last", "step_000003"]
    assert json.loads((tmp_path / "progress.jsonl").read_text())["step"] == 3
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
def test_ctrl_c_on_the_command_line(tmp_path):
    """Send the signal as a terminal does, to the processes of the loader too."""
    write_isic_phantoms(tmp_path / "data", train=4, test=0, size=40, seed=1)
    flags = {
        **NETWORK,
        "data_name": "ISIC",
        "data_dir": tmp_path / "data",
        "out_dir": tmp_path / "out",
        "batch_size": 2,
        "num_workers": 2,
        "log_interval": 1,
    }
    del flags["in_ch"]
    command = [sys.executable, "scripts/segmentation_train.py"]
    command += [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = tmp_path / "out" / "progress.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err and err.count("Ctrl-C: finishing this step") == 1
    assert err.rstrip().endswith("Interrupted.")
    path = checkpoints.find(tmp_path / "out")
    config, arrays = checkpoints.load(path)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert path.parent.name == f"step_{steps[-1]:06d}" and steps == list(range(1, steps[-1] + 1))
    backend = Backend("pytorch")
    model, _, _ = backend.module("script_util").load_model_and_diffusion(path)
    assert config.training.num_workers == 2
    assert arrays.keys() == backend.module("runtime").state_arrays(model).keys()

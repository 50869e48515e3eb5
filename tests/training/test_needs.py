"""Test what a training says it will need: exact numbers against what is written, memory against measurements."""

import itertools
import json
import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from support.backends import BACKENDS, ROOT
from support.commands import assert_refused
from support.disks import small_disk
from support.loops import StepLoop
from support.small import NETWORK, NETWORK_V1, RandomDataset, small_config

from guided_diffusion_core import checkpoints, training
from guided_diffusion_core.config import resolve
from guided_diffusion_core.data.phantoms import write_isic_phantoms
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.registry import initial_state
from guided_diffusion_core.networks.state import is_buffer
from guided_diffusion_core.system import room
from guided_diffusion_core.training import needs as module
from guided_diffusion_core.training.needs import estimate

pytorch = pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")


@pytest.mark.parametrize(
    "settings", [{}, NETWORK_V1, {"num_channels": 64, "ema_rate": "0.9,0.99"}, {"learn_sigma": False}]
)
def test_parameters_and_checkpoints_are_those_that_are_written(backend, tmp_path, settings):
    config = small_config(**settings)
    needs = estimate(config, 6, training.RunFolder(str(tmp_path)))
    state = initial_state(config.model, config.seed)
    assert needs.parameters == sum(value.size for name, value in state.items() if not is_buffer(name))
    loop = backend.module("train_util").create_train_loop(config, RandomDataset())
    folder = checkpoints.save(tmp_path, 1, config, loop.networks())
    written = sum(path.stat().st_size for path in folder.iterdir())
    # beside the arrays: names, shapes and the configuration in each file
    assert needs.checkpoint <= written <= needs.checkpoint + 4 * 80_000
    held = sum(value.nbytes for value in state.values())
    assert needs.state >= held * (5 + len(config.training.ema_rate.split(",")) - 1) * 0.98


@pytest.mark.parametrize("keep, best", [*itertools.product((0, 1, 2, 3, 9), (False, True))])
@pytest.mark.parametrize("steps, interval, start", [(7, 2, 0), (6, 3, 0), (5, 9, 0), (9, 2, 4), (9, 4, 8), (4, 1, 0)])
def test_the_number_of_checkpoints_is_that_of_a_run(tmp_path, keep, best, steps, interval, start):
    """Run trainings of a few steps, and compare with the folders at their end."""
    settings = {"max_steps": steps, "save_interval": interval, "keep_checkpoints": keep}
    if start:
        training.run_training(StepLoop(0, 2), small_config(**{**settings, "max_steps": start}), tmp_path)
    before = len(list((tmp_path / "checkpoints").glob("step_*")))
    needs = estimate(small_config(**settings), 6, training.RunFolder(str(tmp_path), validates=best), start)
    found = []

    class Loop(StepLoop):
        def networks(self):
            found.append(self.step)
            return super().networks()

    training.run_training(Loop(start, 2), small_config(**settings), tmp_path)
    assert (needs.written, needs.first) == (len(found), found[0])
    after = len(list((tmp_path / "checkpoints").glob("step_*")))
    assert after <= needs.kept <= after + best and needs.existing == min(before, needs.kept)
    together = max(needs.kept, 2) if needs.existing + needs.written > 1 else 1
    assert needs.held == together and needs.disk == max(1, together - needs.existing) * needs.checkpoint


def test_length_and_epochs(tmp_path):
    config = small_config(batch_size=4, microbatch=2, max_steps=30, save_interval=8, processes=2)
    needs = estimate(config, 24, training.RunFolder(str(tmp_path)))
    assert (needs.batch, needs.at_once, needs.steps, needs.first) == (8, 2, 30, 8)
    said = "\n".join(needs.lines(tmp_path))
    assert "30 steps of 8 examples, 10.0 epochs of 24 examples; the first checkpoint after step 8" in said
    assert "time: known after step 6" in said and f"parameters: {needs.parameters:,}" in said


MEASURED = """
import json, sys
from guided_diffusion_core.backends import backend_module
from support.small import RandomDataset, computing, small_config
from guided_diffusion_core.system.process_memory import peak_memory_mib
from guided_diffusion_core.training import RunFolder
from guided_diffusion_core.training.needs import estimate
config = small_config(**json.loads(sys.argv[1]))
loop = backend_module("pytorch", "train_util").create_train_loop(config, RandomDataset(size=config.model.image_size))
for _ in loop.run_loop(1):
    pass
print(peak_memory_mib(), estimate(config, 6, RunFolder("none")).memory / 2**20)
"""


@pytorch
@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 64, "batch_size": 12, "channel_mult": "", "num_channels": 32},
        {"image_size": 128, "batch_size": 3, "channel_mult": "", "num_channels": 32, "use_checkpoint": True},
        {"image_size": 64, "batch_size": 2, "channel_mult": "", "num_channels": 96},
    ],
)
def test_memory_is_about_the_measured_one(settings):
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    measured, expected = map(float, done.stdout.split())
    assert measured / 1.5 < expected < measured * 1.5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_isic_phantoms(tmp_path_factory.mktemp("data"), 4, 0, 40, seed=1)[0]


def dry_run(command, data, out_dir, *flags):
    return command(
        "segmentation_train", "--data_name", "ISIC", "--data_dir", data, "--out_dir", out_dir, "--dry_run", *flags
    )


SMALL = [text for name, value in NETWORK.items() if name != "in_ch" for text in (f"--{name}", str(value))]


def test_a_dry_run_says_it_all_and_leaves_no_folder(command, data, tmp_path):
    code, out, errors = dry_run(command, data, tmp_path / "run", *SMALL, "--batch_size", "2")
    assert code == 0 and json.loads(out)["training"]["batch_size"] == 2
    for text in (
        "parameters: ",
        "memory: about",
        "disk: 3 checkpoints of",
        "epochs of 4 examples",
        "time: known after",
    ):
        assert text in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, texts",
    [
        (["--preset", "MedSegDiff++"], ["the network: found 8,034,581,154 parameters"]),
        ([*SMALL, "--batch_size", "2", "--num_channels", "8192"], ["the network: found", "smaller --num_channels"]),
        (
            [*SMALL, "--batch_size", "1000000", "--device", "cpu"],
            ["--batch_size: found forward passes of 1,000,000 examples", "--microbatch"],
        ),
        (
            [
                *SMALL,
                "--batch_size",
                "2",
                "--max_steps",
                "100000000",
                "--save_interval",
                "1",
                "--keep_checkpoints",
                "0",
            ],
            ["for the checkpoints: 100000000 of", "--keep_checkpoints", "--save_interval"],
        ),
    ],
    ids=["preset", "width", "batch", "checkpoints"],
)
def test_what_cannot_fit_is_refused_without_allocating(command, data, tmp_path, monkeypatch, flags, texts):
    monkeypatch.setattr(module, "memory_limit", lambda: 64 * 2**30)
    tracemalloc.start()
    try:
        result = dry_run(command, data, tmp_path / "run", *flags)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    code, _, errors = result
    last = errors.strip().splitlines()[-1]
    assert_refused((code, "", last), *texts)
    assert "Traceback" not in errors and peak < 200 * 2**20 and not (tmp_path / "run").exists()


def test_a_disk_that_is_too_small(tmp_path):
    """Count what --overwrite will remove as free."""
    config = small_config(max_steps=9, save_interval=3, keep_checkpoints=2)
    needs = estimate(config, 6, training.RunFolder(str(tmp_path)))
    with small_disk(tmp_path / "disk", needs.checkpoint // 1024) as disk:
        with pytest.raises(UserError, match="for the checkpoints: 2 of .*--keep_checkpoints"):
            needs.require_possible(disk / "run")
        needs.require_possible(disk / "run", freed=needs.checkpoint)
        # the next one is written before the only one that stays is removed
        alone = estimate(config.replace(keep_checkpoints=1), 6, training.RunFolder(str(tmp_path)))
        with pytest.raises(UserError, match="for the checkpoints: 2 of .* at once"):
            alone.require_possible(disk / "run")
        once = estimate(config.replace(save_interval=9), 6, training.RunFolder(str(tmp_path)))
        once.require_possible(disk / "run", freed=1024)
        (disk / "run" / "checkpoints" / "step_000003").mkdir(parents=True)
        (disk / "run" / "checkpoints" / "step_000003" / "contents.json").write_bytes(bytes(5000))
        assert training.RunFolder(str(disk / "run"), overwrite=True).freed() == 5000
        assert training.RunFolder(str(disk / "run")).freed() == 0


def test_the_preset_for_small_machines_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "memory_limit", lambda: 64 * 2**30)
    needs = estimate(resolve({"in_ch": 4}, preset="MedSegDiff-B"), 100, training.RunFolder(str(tmp_path)))
    needs.require_possible(tmp_path)
    assert needs.memory < 64 * 2**30


def test_a_family_that_counts_no_activations(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "kept_numbers", lambda settings: None)
    needs = estimate(small_config(batch_size=10**9), 6, training.RunFolder(str(tmp_path)))
    needs.require_possible(tmp_path)
    assert "an unknown amount for activations" in "\n".join(needs.lines(tmp_path))


def test_the_time_is_told_after_some_steps(tmp_path, capsys):
    config = small_config(max_steps=20, save_interval=9)
    training.run_training(StepLoop(), config, tmp_path)
    said = capsys.readouterr().err
    [line] = re.findall("a step takes .*", said)
    assert "the next checkpoint, after step 9, in 0 s; the end in 0 s" in line
    assert "\r" not in said and np.all([text in said for text in ("of 20 steps", "trained 20 steps")])


def test_the_limit_is_this_machines():
    assert module.memory_limit is room.memory_limit

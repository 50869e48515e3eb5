"""Test a training whose disk becomes full: the step is kept where room can be made, and no checkpoint is damaged."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from support.disks import files_up_to, small_disk
from support.loops import FLOATS, StepLoop, whole_steps
from support.small import small_config

from guided_diffusion_core import checkpoints, training
from guided_diffusion_core.system.room import NoRoom
from guided_diffusion_core.training.log import read_log

# KiB of one checkpoint with its configuration: two files of 40,000 bytes and 4 KiB each, and the contents
CHECKPOINT = 92


def run(folder, step=0, **settings):
    config = small_config(**{"save_interval": 1, "log_interval": 1, "max_steps": 6, **settings})
    return training.run_training(StepLoop(step), config, folder)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_old_checkpoints_make_room(tmp_path):
    """Write all six steps where only two checkpoints fit: the older one goes before the next is written."""
    with small_disk(tmp_path / "disk", 2 * CHECKPOINT + 60) as disk:
        run(disk, keep_checkpoints=2)
        assert whole_steps(disk) == [5, 6] and names(disk) == ["last", "step_000005", "step_000006"]


def test_where_no_room_can_be_made_the_training_says_how_it_goes_on(tmp_path):
    with small_disk(tmp_path / "disk", 3 * CHECKPOINT + 60) as disk:
        with pytest.raises(NoRoom) as error:
            run(disk, keep_checkpoints=0)
        message = str(error.value)
        assert str(disk / "checkpoints" / "step_000004") in message and "room for 78.1 KiB" in message
        assert "Make room, then go on with --resume last, from step_000003." in message
        assert whole_steps(disk) == [1, 2, 3] and names(disk)[0] == "last"
        checkpoints.find_whole("last", disk)
        # the user makes room, and goes on
        shutil.rmtree(disk / "checkpoints" / "step_000001")
        step, config, networks, _ = training.resumed_config("last", disk, {"keep_checkpoints": 2})
        assert step == 3 and networks["model"]["a"][0] == 3
        training.run_training(StepLoop(step), config, disk)
        assert whole_steps(disk)[-2:] == [5, 6]
        lines = [json.loads(line)["step"] for line in (disk / "progress.jsonl").read_text().splitlines()]
        assert lines == [1, 2, 3, 4, 5, 6]


def test_the_last_and_the_best_are_never_removed_for_room(tmp_path):
    folder = tmp_path / "run"
    weights = {"model": {"a": np.zeros(FLOATS, np.float32)}}
    validation = {"step": 1, "best": {"step": 1, "dice": 0.5}}
    for step in (1, 2, 3):
        checkpoints.save(folder, step, small_config(), weights, 3, validation)
    with files_up_to(9000), pytest.raises(NoRoom):
        checkpoints.save(folder, 4, small_config(), weights, 2, validation)
    assert names(folder) == ["best", "last", "step_000001", "step_000003"]
    with files_up_to(9000), pytest.raises(NoRoom):
        checkpoints.save(folder, 4, small_config(), weights, 1, validation)
    assert names(folder) == ["best", "last", "step_000001", "step_000003"]


def test_checkpoints_of_others_are_neither_counted_nor_removed(tmp_path):
    """Copy a later checkpoint of another training into the folder: no number of own ones removes it."""
    checkpoints.save(tmp_path / "other", 900, small_config(), StepLoop(900).networks())
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other" / "checkpoints" / "step_000900").rename(tmp_path / "run" / "checkpoints" / "step_000900")
    run(tmp_path / "run", keep_checkpoints=1)
    assert whole_steps(tmp_path / "run") == [6, 900]
    run(tmp_path / "run", step=6, keep_checkpoints=2, max_steps=9)
    assert whole_steps(tmp_path / "run") == [8, 9, 900]


def test_a_step_that_is_written_again_replaces_its_checkpoint(tmp_path):
    for floats in (20, 30):
        checkpoints.save(tmp_path, 5, small_config(), StepLoop(5, floats).networks())
    folder = checkpoints.find_whole("last", tmp_path)
    assert checkpoints.load_all(folder)[2]["model"]["a"].shape == (30,) and names(tmp_path) == ["last", "step_000005"]


def test_a_full_disk_at_a_line_of_the_log_costs_no_step(tmp_path):
    """Let the log alone grow too large: the step that it was about is saved."""
    with files_up_to(FLOATS * 4 + 5000), pytest.raises(NoRoom) as error:
        run(tmp_path, max_steps=2000, save_interval=2000)
    [step] = whole_steps(tmp_path)
    assert "progress.jsonl" in str(error.value) and f"--resume last, from step_{step:06d}" in str(error.value)
    assert [line["step"] for line in read_log(tmp_path, 2000)] == list(range(1, step))
    # the half line is dropped when the training goes on
    run(tmp_path, step=step, max_steps=step + 2)
    assert [line["step"] for line in read_log(tmp_path, 2000)] == [*range(1, step), step + 1, step + 2]


def test_without_any_checkpoint_the_message_starts_again(tmp_path):
    with files_up_to(9000), pytest.raises(NoRoom, match="start the same command again with --overwrite"):
        run(tmp_path)
    with contextlib.suppress(FileNotFoundError):
        assert not any((tmp_path / "checkpoints").iterdir())

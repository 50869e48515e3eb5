"""Test the curves of a training and its log for TensorBoard."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image
from support.disks import files_up_to
from support.loops import StepLoop
from support.small import small_config

from guided_diffusion_core import training
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system.room import NoRoom
from guided_diffusion_core.training import curves
from guided_diffusion_core.training.log import read_log

tensorboardX = pytest.importorskip("tensorboardX")


def run(folder, step=0, **settings):
    config = small_config(**{"max_steps": 6, "log_interval": 1, "save_interval": 3, **settings})
    return training.run_training(StepLoop(step, 4), config, folder)


def events(folder):
    """Read TensorBoard's records: (step, name) -> value, the later ones over the earlier ones, as it shows them."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == 1:  # a start that drops what has been logged from this step on
                found = {key: value for key, value in found.items() if key[0] < event.step}
            found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    return found


def logged(folder):
    lines = read_log(folder, 10**9)
    return {(line["step"], name): value for line in lines for name, value in line.items() if name != "step"}


def test_tensorboard_gets_the_lines_of_the_log_over_a_resume_too(tmp_path):
    run(tmp_path, max_steps=5, tensorboard=True)
    assert events(tmp_path) == pytest.approx(logged(tmp_path), rel=1e-6) and len(events(tmp_path)) == 5 * 4
    # step 5 was after the last checkpoint that the training goes on from
    run(tmp_path, step=3, max_steps=6, tensorboard=True)
    assert events(tmp_path) == pytest.approx(logged(tmp_path), rel=1e-6) and {
        step for step, _ in events(tmp_path)
    } == set(range(1, 7))


def test_no_folder_without_the_flag(tmp_path):
    run(tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_overwrite_removes_the_records_alone(tmp_path):
    run(tmp_path, tensorboard=True)
    (tmp_path / "tensorboard" / "notes.txt").write_text("kept")
    training.RunFolder(str(tmp_path), overwrite=True).prepare("{}")
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "progress.png").exists()


def test_a_missing_package_is_one_message(monkeypatch, command, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="--tensorboard: found no package tensorboardX .*pip install tensorboardX"):
        training.require_tensorboard()
    code, _, errors = command(
        "segmentation_train", "--tensorboard", "True", "--data_dir", tmp_path, "--out_dir", tmp_path
    )
    assert code == 2 and "pip install tensorboardX" in errors and "Traceback" not in errors


LINES = [
    {
        "step": step,
        "seconds": 1.0 * step,
        "memory_mib": 9.0,
        "val_dice": dice,
        "total": 1 / step,
        "loss": 0.5,
        "lr": 1e-4,
    }
    for step, dice in ((2, None), (4, 0.2), (6, None), (8, 0.9))
]


def drawn_axes(lines, monkeypatch):
    figures = []
    make = curves.make_figure
    monkeypatch.setattr(curves, "make_figure", lambda *size: figures.append(make(*size)) or figures[-1])
    content = curves._drawn(lines)
    assert Image.open(io.BytesIO(content)).format == "PNG"
    return figures[0].axes


def test_curves_are_the_losses_and_the_validations(monkeypatch):
    losses, dice = drawn_axes(LINES, monkeypatch)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert drawn == {
        "total": [[step, 1 / step] for step in (2, 4, 6, 8)],
        "loss": [[step, 0.5] for step in (2, 4, 6, 8)],
    }
    assert dice.lines[0].get_xydata().tolist() == [[4, 0.2], [8, 0.9]] and dice.get_ylim() == (0, 1)


def test_curves_without_validation(monkeypatch):
    lines = [{name: value for name, value in line.items() if name != "val_dice"} for line in LINES]
    assert len(drawn_axes(lines, monkeypatch)) == 1


@pytest.mark.parametrize("value", [0.0, -1.0, 1e300])
def test_any_finite_loss_can_be_drawn(monkeypatch, value):
    assert drawn_axes([{**line, "total": value} for line in LINES], monkeypatch)


def test_the_picture_is_written_at_the_end(tmp_path):
    run(tmp_path)
    with Image.open(tmp_path / "progress.png") as picture:
        assert np.asarray(picture).std() > 1


def test_a_full_disk_at_the_picture_costs_no_step(tmp_path):
    with files_up_to(9000), pytest.raises(NoRoom, match="progress.png.*--resume last, from step_000006"):
        run(tmp_path)

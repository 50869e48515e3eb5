"""Test the demo around the commands that it runs: its folder, the flags, failures, the table and the picture."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from guided_diffusion_core import backends, checkpoints, config
from guided_diffusion_core.backends import BACKENDS
from guided_diffusion_core.data import list_truths, open_dataset
from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.formats.masks import read_masks
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.results.outputs import CaseWriter
from medsegdiff.__main__ import main
from medsegdiff.commands.demo import PICTURES
from medsegdiff.demo import parts as demo_parts
from medsegdiff.demo import results as demo

STEP_SECONDS = 0.5


def test_folder_of_an_earlier_demo_is_replaced_and_what_is_not_its_own_stays(tmp_path):
    folder = demo.prepare_folder(tmp_path / "demo", ["data", "overview.png"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.txt").touch()
    (folder / "data" / "old").mkdir(parents=True)
    (folder / "overview.png").touch()
    (folder / "linked").symlink_to(elsewhere)
    (folder / "notes.txt").touch()
    demo.prepare_folder(folder, ["data", "overview.png", "linked"])
    assert {path.name for path in folder.iterdir()} == {demo.MARKER, "notes.txt"}
    assert (elsewhere / "kept.txt").is_file()


def test_foreign_folder_is_refused_untouched(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="not the demo's"):
        demo.prepare_folder(tmp_path, ["data"])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_durations():
    assert [demo.minutes(seconds) for seconds in (0, 59.9, 60, 605)] == ["0:00", "0:59", "1:00", "10:05"]


def test_table():
    results = {"PyTorch": demo.Result(0.95, 0.9, 60.0, 10.0, 0.5), "Jittor": demo.Result(0.94, 0.89, 80.0, 12.5, 0.75)}
    lines = demo.format_table(results, {"a": 1.0, "b": 0.98}).splitlines()
    assert lines[0].split() == [
        "backend",
        "Dice",
        "IoU",
        "training",
        "s",
        "sampling",
        "s",
        "total",
        "s",
        "s",
        "per",
        "step",
    ]
    assert lines[1].split() == ["PyTorch", "0.9500", "0.9000", "60.0", "10.0", "70.0", "0.50"]
    assert lines[2].split() == ["Jittor", "0.9400", "0.8900", "80.0", "12.5", "92.5", "0.75"]
    assert len(set(map(len, lines[:3]))) == 1, "columns are aligned"
    assert lines[3].endswith("99.00% on average, 98.00% at the lowest (b)")


def test_failing_command_ends_the_demo_with_its_exit_code(tmp_path, capfd):
    with pytest.raises(SystemExit) as leave:
        demo_parts.Parts(1).run("train", "PyTorch", tmp_path / "run", data_dir=tmp_path / "missing")
    assert leave.value.code == 2
    assert "no such folder" in (errors := capfd.readouterr().err)
    assert "train ended with exit code 2" in errors


def test_killed_command_ends_the_demo_as_a_shell_would(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=-9))
    with pytest.raises(SystemExit) as leave:
        demo_parts.Parts(1).run("sample", "Jittor", tmp_path / "run")
    assert leave.value.code == 137


def test_headings_count_down(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=0))
    parts = demo_parts.Parts(1)
    for part in demo_parts.EXPECTED:
        parts.run(part, "PyTorch", tmp_path)
    headings = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line.split()[0] for line in headings] == ["[1/3]", "[2/3]", "[3/3]"]
    assert parts.left == 0


def in_this_process(command, stdout):
    """Replace a public command: the real parser reads the flags, `--dry_run` replaces the network, and the truth gives
    the files."""
    python, dash, package, name, *flags = command
    assert (python, dash, package) == (sys.executable, "-m", "medsegdiff")
    value = dict(zip(flags[::2], flags[1::2]))
    before = sys.argv
    sys.argv = ["medsegdiff", name, *flags] + (["--dry_run"] if name != "score" else [])
    try:
        with redirect_stdout(stdout):
            main()
    finally:
        sys.argv = before
    if name == "train":
        write_training(stdout.name, value["--out_dir"])
    elif name == "sample":
        write_masks(value["--data_dir"], value["--out_dir"])
    return SimpleNamespace(returncode=0)


def write_training(output, out_dir):
    """Write a log and a checkpoint without weights, with the configuration that the command has printed."""
    with open(output, encoding="utf-8") as file:
        printed = json.load(file)
    resolved = config.from_dict({name: printed[name] for name in config.Config().to_dict()})
    checkpoints.save(out_dir, resolved.training.max_steps, resolved, {"model": {"w": np.zeros(1, np.float32)}})
    with open(f"{out_dir}/progress.jsonl", "w", encoding="utf-8") as file:
        for step in (10, resolved.training.max_steps):
            file.write(json.dumps({"step": step, "seconds": 9 + STEP_SECONDS * step}) + "\n")


def write_masks(data_dir, out_dir):
    """Write masks that equal the truth, except the first row of pixels in the second backend."""
    data = config.DataConfig("ISIC", data_dir)
    writer = CaseWriter(out_dir)
    paths = {truth.name: truth.path for truth in list_truths(data)}
    for case in open_dataset(data, 64, "Test", need_masks=False).cases():
        truth = read_masks(paths[case.name], LabelMap()).astype(np.float32)
        truth[:, 0] = "jittor" in out_dir
        writer.write(case, truth, 0 * truth, 0.5)


def run_demo(out_dir, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", in_this_process)
    monkeypatch.setattr(sys, "argv", ["medsegdiff", "demo", "--out_dir", str(out_dir)])
    main()
    shown = capsys.readouterr().out
    return shown, {line.split()[0]: line.split() for line in shown.splitlines() if line.startswith(tuple(BACKENDS))}


def test_demo_ends_in_one_table_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backends, "is_installed", lambda name: True)
    shown, rows = run_demo(tmp_path / "demo", monkeypatch, capsys)
    assert float(rows["pytorch"][1]) == 1 > float(rows["jittor"][1]) > 0.8
    assert rows["pytorch"][-1] == rows["jittor"][-1] == f"{STEP_SECONDS:.2f}"
    assert f"{100 * (1 - 1 / PICTURES['size']):.2f}% on average" in shown
    picture = tmp_path / "demo" / "overview.png"
    assert f"overview: {picture}" in shown
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.height > image.width, "a row for each of the eight cases"


def test_demo_runs_with_one_backend_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backends, "is_installed", lambda name: name == "pytorch")
    shown, rows = run_demo(tmp_path / "demo", monkeypatch, capsys)
    assert list(rows) == ["pytorch"] and "masks agree" not in shown
    assert (tmp_path / "demo" / "overview.png").is_file()


def test_demo_without_a_backend_says_how_to_install_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backends, "is_installed", lambda name: False)
    with pytest.raises(SystemExit) as leave:
        run_demo(tmp_path / "demo", monkeypatch, capsys)
    assert leave.value.code == 2 and "pip install .[pytorch]" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()

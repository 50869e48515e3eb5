"""The demo around the commands that it runs: its folder, the flags, failures, the table and the picture."""

import importlib.util
import json
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.backends import ROOT

from guided_diffusion_core import checkpoints, config
from guided_diffusion_core.data import list_truths, open_dataset
from guided_diffusion_core.data.formats.images import read_mask
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.results.outputs import CaseWriter
from studies import demo

STEP_SECONDS = 0.5


@pytest.fixture
def script():
    """`scripts/demo.py` as a module."""
    spec = importlib.util.spec_from_file_location("demo_script", ROOT / "scripts" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_failing_command_ends_the_demo_with_its_exit_code(script, tmp_path, capfd):
    with pytest.raises(SystemExit) as leave:
        script.Parts(1).run("train", "PyTorch", tmp_path / "run", ["--data_dir", tmp_path / "missing"])
    assert leave.value.code == 2
    assert "no such folder" in (errors := capfd.readouterr().err)
    assert "segmentation_train.py ended with exit code 2" in errors


def test_killed_command_ends_the_demo_as_a_shell_would(script, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=-9))
    with pytest.raises(SystemExit) as leave:
        script.Parts(1).run("sample", "Jittor", tmp_path / "run", [])
    assert leave.value.code == 137


def test_headings_count_down(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=0))
    parts = script.Parts(1)
    for part in script.EXPECTED:
        parts.run(part, "PyTorch", tmp_path, [])
    headings = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line.split()[0] for line in headings] == ["[1/3]", "[2/3]", "[3/3]"]
    assert parts.left == 0


def in_this_process(command, stdout):
    """Stands for a public command: the flags go through the real parser, `--dry_run` replaces the
    network, and what it would have written is made from the truth."""
    path = command[1]
    flags = command[2:]
    name = path.rsplit("_", 1)[1]
    value = dict(zip(flags[::2], flags[1::2]))
    before = sys.argv
    sys.argv = [path, *flags] + (["--dry_run"] if name != "env.py" else [])
    try:
        with redirect_stdout(stdout):
            runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before
    if name == "train.py":
        write_training(stdout.name, value["--out_dir"])
    elif name == "sample.py":
        write_masks(value["--data_dir"], value["--out_dir"])
    return SimpleNamespace(returncode=0)


def write_training(output, out_dir):
    """A log and a checkpoint without weights, with the configuration that the command has printed."""
    with open(output, encoding="utf-8") as file:
        printed = json.load(file)
    resolved = config.from_dict({name: printed[name] for name in config.Config().to_dict()})
    checkpoints.save(out_dir, resolved.training.max_steps, resolved, {"model": {"w": np.zeros(1, np.float32)}})
    with open(f"{out_dir}/progress.jsonl", "w", encoding="utf-8") as file:
        for step in (10, resolved.training.max_steps):
            file.write(json.dumps({"step": step, "seconds": 9 + STEP_SECONDS * step}) + "\n")


def write_masks(data_dir, out_dir):
    """Masks equal to the truth, but for the first row of pixels of the second backend's."""
    data = config.DataConfig("ISIC", data_dir)
    writer = CaseWriter(out_dir)
    paths = {truth.name: truth.path for truth in list_truths(data)}
    for case in open_dataset(data, 64, "Test", need_masks=False).cases():
        truth = read_mask(paths[case.name])[None].astype(np.float32)
        truth[:, 0] = "jittor" in out_dir
        writer.write(case, truth, 0 * truth, 0.5)


def test_demo_ends_in_one_table_and_a_picture(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", in_this_process)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out_dir", str(tmp_path / "demo")])
    script.main()
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines() if line.startswith(("PyTorch", "Jittor"))]
    rows = {line[0]: line for line in lines}
    assert float(rows["PyTorch"][1]) == 1 > float(rows["Jittor"][1]) > 0.8
    assert rows["PyTorch"][-1] == rows["Jittor"][-1] == f"{STEP_SECONDS:.2f}"
    assert f"{100 * (1 - 1 / script.PICTURES['size']):.2f}% on average" in shown
    picture = tmp_path / "demo" / "overview.png"
    assert f"overview: {picture}" in shown
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.height > image.width, "a row for each of the eight cases"

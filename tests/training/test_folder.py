"""Test that a training's folder keeps one training: what is refused, what --overwrite removes, two runs at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.backends import BACKENDS, ROOT
from support.commands import assert_refused, files_below
from support.small import NETWORK, small_config

from guided_diffusion_core import checkpoints
from guided_diffusion_core.command_line import configuration_text
from guided_diffusion_core.data.phantoms import write_isic_phantoms
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system.locks import NAME
from guided_diffusion_core.training import RunFolder, default_folder

LINE = '{"step": 3, "seconds": 1.5}\n'


def save(folder, *steps, best=None):
    validation = {"step": best, "best": {"step": best, "dice": 0.5}} if best else None
    for step in steps:
        checkpoints.save(folder, step, small_config(), {"model": {"a": np.ones(2, np.float32)}}, 0, validation)


def write_training(folder):
    """Write all that a training leaves, and return the relative paths of its files."""
    save(folder, 3, 6, best=3)
    (folder / "config.json").write_text(configuration_text(small_config()))
    (folder / "progress.jsonl").write_text(LINE)
    (folder / "progress.csv").write_text("step,seconds\n3,1.5\n")
    (folder / "progress.png").write_bytes(b"curves")
    (folder / "validation").mkdir()
    for name in ("run_report.json", "summary.json", "a_mask.png", "a_uncertainty.tiff", "v_mask.nii.gz"):
        (folder / "validation" / name).write_text("{}")
    return files_below(folder)


def lines(folder):
    return [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]


def contents(folder):
    return {path: (folder / path).read_bytes() for path in files_below(folder)}


def start(folder, step):
    return checkpoints.resume_folder(str(folder / "checkpoints" / f"step_{step:06d}"), "")


def test_a_folder_that_holds_a_training_is_refused_with_the_choices(tmp_path):
    write_training(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError) as error:
        RunFolder(str(tmp_path)).check()
    for text in (f"--out_dir {tmp_path}", "step_000003", "--resume last", "--overwrite", "another --out_dir"):
        assert text in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["a checkpoint", "a log", "a log cut by a kill", "a checkpoint of another run"])
def test_what_counts_as_a_training(tmp_path, kind):
    run = RunFolder(str(tmp_path / "run"))
    if kind == "a checkpoint of another run":
        save(tmp_path / "other", 4)
        run = RunFolder(run.path, start=start(tmp_path / "other", 4))
    if "checkpoint" in kind:
        save(tmp_path / "run", 3)
    else:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "progress.jsonl").write_text(LINE if kind == "a log" else LINE[:15])
    with pytest.raises(UserError, match="found a training"):
        run.check()


@pytest.mark.parametrize("kind", ["no folder", "nothing", "files of others", "a start that failed", "masks"])
def test_what_does_not_count_as_one(tmp_path, kind):
    folder = tmp_path / "run"
    if kind != "no folder":
        folder.mkdir()
    if kind == "files of others":
        (folder / "slurm-4.out").write_text("...")
    if kind == "a start that failed":
        (folder / "config.json").write_text(configuration_text(small_config()))
        (folder / "progress.jsonl").write_text("")
    if kind == "masks":
        (folder / "a_mask.png").write_text("...")
        (folder / "run_report.json").write_text("{}")
    RunFolder(str(folder)).check()


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", '{"learning_rate": 1}'),
        ("config.json", "not JSON"),
        ("progress.jsonl", '{"epoch": 1}\n'),
        ("progress.csv", "epoch,loss\n1,2\n"),
        ("validation/patient_mask.png", "of a data set"),
        ("validation/case.txt", "of a data set"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_other_software_is_never_written_over(tmp_path, name, content, overwrite):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="that no training wrote"):
        RunFolder(str(tmp_path), overwrite=overwrite, validates=True).check()
    assert (tmp_path / name).read_text() == content


def test_overwrite_removes_a_training_and_nothing_else(tmp_path):
    written = write_training(tmp_path)
    others = [
        "notes.txt",
        "weights.safetensors",
        "masks/a_mask.png",
        "a_mask.png",
        "validation/notes.txt",
        "checkpoints/converted.safetensors",
        "checkpoints/step_final/model.safetensors",
        "checkpoints/step_000003/why_it_is_good.txt",
    ]
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "checkpoints" / ".step_000009.writing-there-7").mkdir()
    run = RunFolder(str(tmp_path), overwrite=True, validates=True)
    run.check()
    assert set(written) < set(files_below(tmp_path)), "a check removes nothing"
    run.prepare("{}")
    assert {str(path) for path in files_below(tmp_path)} == {*others, "config.json"}
    assert not list((tmp_path / "checkpoints").glob(".*"))
    save(tmp_path, 3)  # a folder that another file keeps takes the checkpoint of the same step
    assert checkpoints.find_whole("last", tmp_path).name == "step_000003"
    assert (tmp_path / "checkpoints/step_000003/why_it_is_good.txt").exists()


def test_overwrite_leaves_an_empty_folder_where_there_is_nothing_else(tmp_path):
    write_training(tmp_path)
    RunFolder(str(tmp_path), overwrite=True).prepare("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_going_on_in_the_same_folder(tmp_path):
    """Take the last checkpoint always, an earlier one only with --overwrite, which removes the later ones."""
    save(tmp_path, 3, 6, best=6)
    save(tmp_path, 9)
    RunFolder(str(tmp_path), start(tmp_path, 9)).check()
    earlier = RunFolder(str(tmp_path), start(tmp_path, 3))
    with pytest.raises(UserError, match="found checkpoints after step_000003: step_000006, step_000009; .*--overwrite"):
        earlier.check()
    run = RunFolder(str(tmp_path), start(tmp_path, 3), overwrite=True)
    run.check()
    run.prepare("{}")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last", "step_000003"]
    assert checkpoints.find_whole("last", tmp_path).name == "step_000003"


def test_a_kill_before_the_pointer_was_written_does_not_stop_a_run_from_going_on(tmp_path):
    save(tmp_path, 3, 6)
    (tmp_path / "checkpoints" / "last").write_text("step_000003\n")
    RunFolder(str(tmp_path), checkpoints.resume_folder("last", tmp_path)).check()


def test_a_link_to_the_folder_is_the_folder(tmp_path):
    save(tmp_path / "run", 3)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    run = RunFolder(str(tmp_path / "link"), start(tmp_path / "run", 3), overwrite=True)
    run.check()
    run.prepare("{}")
    assert checkpoints.find_whole("last", tmp_path / "run").name == "step_000003"


@pytest.mark.parametrize(
    "data_dir, resume, expected",
    [
        ("/data/lungs", "", "results/lungs"),
        ("/data/lungs/", "last", "results/lungs"),
        ("/data/ISIC/Train", "", "results/ISIC-Train"),
        ("data/train", "", "results/data-train"),
        ("gs://bucket/brats/training", "", "results/brats-training"),
        ("/", "", "results/run"),
        ("/train", "", "results/train"),
        ("/data/lungs", "{tmp}/old/checkpoints/step_000003", "{tmp}/old"),
        ("", "{tmp}/old/checkpoints/last", "{tmp}/old"),
        ("", "{tmp}/old", "{tmp}/old"),
    ],
)
def test_the_folder_without_a_flag(tmp_path, data_dir, resume, expected):
    save(tmp_path / "old", 3)
    assert default_folder(data_dir, resume.format(tmp=tmp_path)) == expected.format(tmp=tmp_path)


def test_without_data_and_folder_there_is_an_error():
    with pytest.raises(UserError, match="--out_dir: found none"):
        default_folder("", "last")


FLAGS = [text for name, value in NETWORK.items() if name != "in_ch" for text in (f"--{name}", str(value))]
FLAGS += ["--data_name", "ISIC", "--batch_size", "2", "--log_interval", "1"]
pytorch = pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_isic_phantoms(tmp_path_factory.mktemp("data"), 4, 1, 40, seed=1)


@pytorch
def test_the_command_protects_the_training_before(command, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ["segmentation_train", *FLAGS, "--data_dir", data[0], "--max_steps"]
    code, _, errors = command(*train, 2)
    [run] = (tmp_path / "results").iterdir()
    assert code == 0 and f"log and checkpoints go to results/{run.name}" in errors, errors
    before = contents(run)
    for flags in ([], ["--dry_run"]):
        assert_refused(command(*train, 3, *flags), "--resume last", "--overwrite", "another --out_dir")
        assert contents(run) == before
    code, _, errors = command(*train, 3, "--resume", "last")
    assert code == 0, errors
    assert [line["step"] for line in lines(run)] == [1, 2, 3]
    seconds = [line["seconds"] for line in lines(run)]
    assert seconds == sorted(seconds) and seconds[2] > seconds[1] + 0.01, "the time goes on"
    # a wrong flag is found before anything is removed
    assert_refused(command(*train, 1, "--overwrite", "--batch_size", "1"), "--batch_size")
    assert checkpoints.find(run).parent.name == "step_000003"
    code, _, errors = command(*train, 1, "--overwrite")
    assert code == 0, errors
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last", "step_000001"]


@pytorch
def test_a_second_run_in_the_folder_of_a_running_one(command, data, tmp_path):
    """Refuse a training, a training that goes on and a sampling; after kill -9 the folder is free."""
    run = tmp_path / "run"
    train = [*FLAGS, "--data_dir", data[0], "--out_dir", str(run), "--max_steps", "100000", "--save_interval", "1"]
    first = subprocess.Popen(
        [sys.executable, "scripts/segmentation_train.py", *train],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (run / "checkpoints" / "last").exists() and first.poll() is None:
            time.sleep(0.02)
        holder = f"process {first.pid} on"
        assert_refused(command("segmentation_train", *train, "--overwrite"), "a training that runs there", holder)
        assert_refused(command("segmentation_train", *train, "--resume", "last"), holder)
        sample = ["--data_dir", data[1], "--model_path", run, "--out_dir", run]
        assert_refused(command("segmentation_sample", *sample), holder)
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert (run / NAME).exists()
    step = int(checkpoints.find_whole("last", run).name.removeprefix("step_"))
    flags = ["--resume", "last", "--data_dir", data[0], "--max_steps", step + 1]
    code, _, errors = command("segmentation_train", "--out_dir", run, *flags)
    assert code == 0, errors
    assert not (run / NAME).exists() and not list(Path(run).rglob("*.writing*"))

"""Test that a checkpoint, which may be shared, tells neither paths nor users, and that a training still goes on."""

import dataclasses
import json
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.small import NETWORK, small_config

from guided_diffusion_core import checkpoints, config, training
from guided_diffusion_core.checkpoints import files
from guided_diffusion_core.data import phantoms
from guided_diffusion_core.errors import UserError

TINY = {"model": {"a": np.arange(4, dtype=np.float32)}, "trainer": {"first_moment/a": np.ones(3, np.float32)}}
FLAGS = [text for name, value in NETWORK.items() if name != "in_ch" for text in (f"--{name}", value)]


def test_every_setting_with_a_path_is_known():
    named = {
        field.name
        for section in config.SECTIONS.values()
        for field in dataclasses.fields(section)
        if field.name.endswith(("_dir", "_path", "_file", "_from"))
    }
    assert config.path_settings().keys() >= named >= {"data_dir", "val_dir", "init_from"}


@pytest.mark.parametrize(
    "path, name",
    [
        ("", ""),
        ("/home/anna/data/ISIC", "ISIC"),
        ("/home/anna/data/ISIC/", "ISIC"),
        ("data/../data/ISIC", "ISIC"),
        ("ISIC", "ISIC"),
        (".", Path.cwd().name),
        ("~", "home"),
        (str(Path.home()), "home"),
        ("~/ISIC", "ISIC"),
        ("gs://anna/data/ISIC", "ISIC"),
        ("C:\\Users\\anna\\ISIC", "ISIC"),
        ("/", "/"),
    ],
)
def test_the_last_part_of_a_path(path, name):
    assert config.last_name(path) == name
    assert config.last_name(name) == name


def test_no_file_of_a_checkpoint_tells_where_it_was_made(command, tmp_path, monkeypatch):
    user = "anna-schmidt"
    folder = tmp_path / user / "Train"
    out_dir = tmp_path / user / "run"
    monkeypatch.setenv("USER", user)
    monkeypatch.setenv("LOGNAME", user)
    monkeypatch.setattr(platform, "node", lambda: f"{user}-laptop")
    phantoms.write_image_phantoms(folder, 2, 32, 1)
    flags = ["--data_name", "IMAGES", "--data_dir", folder, "--val_dir", folder, "--val_interval", 1, "--val_cases", 1]
    flags += ["--out_dir", out_dir, "--batch_size", 2, "--max_steps", 1, "--val_steps", 1, *FLAGS]
    code, _, errors = command("segmentation_train", *flags)
    assert code == 0, errors
    contents = {path.name: path.read_bytes() for path in out_dir.glob("checkpoints/**/*") if path.is_file()}
    assert {"model.safetensors", "trainer.safetensors", "contents.json", "validation.json", "last"} <= contents.keys()
    for name, content in contents.items():
        for secret in (user, str(tmp_path), f"{Path.home()}/"):
            assert secret.encode() not in content, (name, secret)
    found = checkpoints.read_config(checkpoints.find(out_dir))
    assert (found.data.data_dir, found.training.val_dir) == ("Train", "Train")
    # the run's own file has the paths, with which it goes on
    flags[flags.index("--max_steps") + 1] = 2
    places = ("--data_dir", "--val_dir")
    kept = [text for before, text in zip([None, *flags], flags) if text not in places and before not in places]
    code, _, errors = command("segmentation_train", *kept, "--resume", "last")
    assert code == 0, errors
    step, resumed, _ = files.load_all(checkpoints.find_whole("last", out_dir))
    assert (step, resumed.data.data_dir) == (2, "Train")
    assert json.loads((out_dir / "config.json").read_text())["data"]["data_dir"] == str(folder)


@pytest.fixture
def run(tmp_path):
    """A run whose checkpoint knows names alone, and its config.json the paths."""
    whole = small_config(data_dir="/home/anna/ISIC/Train", val_dir="/home/anna/ISIC/Val", init_from="/home/anna/x")
    checkpoints.save(tmp_path / "run", 3, whole, TINY)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"backend": "pytorch", **whole.to_dict()}))
    return tmp_path / "run"


def resumed(run, **given):
    return training.resumed_config("last", run, given)[1]


def test_a_resumed_run_finds_its_paths(run):
    found = resumed(run)
    assert (found.data.data_dir, found.training.val_dir) == ("/home/anna/ISIC/Train", "/home/anna/ISIC/Val")


def test_a_given_path_wins(run):
    found = resumed(run, data_dir="/other/Train")
    assert (found.data.data_dir, found.training.val_dir) == ("/other/Train", "/home/anna/ISIC/Val")


@pytest.mark.parametrize("damage", ["missing", "no JSON", "a list", "another run", "no text"])
def test_a_checkpoint_alone_asks_for_its_paths(run, damage):
    path = run / "config.json"
    tree = json.loads(path.read_text())
    path.unlink()
    if damage == "no JSON":
        path.write_text("{")
    elif damage == "a list":
        path.write_text("[1]")
    elif damage == "another run":
        path.write_text(json.dumps(tree).replace("Train", "Other").replace("Val", "Other"))
    elif damage == "no text":
        path.write_text(json.dumps({"data": {"data_dir": 3}, "training": {"val_dir": []}}))
    with pytest.raises(UserError, match="--data_dir: found only the name 'Train' in .*Give --data_dir"):
        resumed(run)
    with pytest.raises(UserError, match="--val_dir: found only the name 'Val'"):
        resumed(run, data_dir="/other/Train")
    assert resumed(run, data_dir="/other/Train", val_dir="/other/Val").data.data_dir == "/other/Train"


def test_a_checkpoint_of_an_older_version_has_its_paths(run, monkeypatch):
    whole = small_config(data_dir="/home/anna/ISIC/Train", val_dir="/home/anna/ISIC/Val")
    monkeypatch.setattr(files.configuration, "without_paths", lambda config: config)
    shutil.rmtree(run)
    checkpoints.save(run, 3, whole, TINY)
    found = resumed(run)
    assert (found.data.data_dir, found.training.val_dir) == ("/home/anna/ISIC/Train", "/home/anna/ISIC/Val")


def test_no_validation_stays_none(tmp_path):
    checkpoints.save(tmp_path, 3, small_config(data_dir="/x/Train"), TINY)
    (tmp_path / "config.json").write_text(json.dumps({"training": {"val_dir": "/x/Val"}}))
    assert resumed(tmp_path, data_dir="/x/Train").training.val_dir == ""

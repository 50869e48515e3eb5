"""Test that a killed and resumed run equals an uninterrupted one to the bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.backends import ROOT
from support.small import NETWORK, RandomDataset, small_config

from guided_diffusion_core import checkpoints, training
from guided_diffusion_core.data.phantoms import write_isic_phantoms
from guided_diffusion_core.errors import UserError

# 3 time steps, so that the history of their losses is full, and decides, within the first steps
SETTINGS = {
    "schedule_sampler": "loss-second-moment",
    "timestep_respacing": "3",
    "max_steps": 18,
    "microbatch": 2,
    "batch_size": 4,
    "ema_rate": "0.9,0.99",
    "weight_decay": 0.01,
    "lr_anneal_steps": 20,
    "lr_schedule": "cosine",
    "highway_dropout": 0.5,
}


def create(backend, **keywords):
    return backend.module("train_util").create_train_loop(small_config(**SETTINGS), RandomDataset(), **keywords)


def run(loop, steps):
    return [values for _, values in loop.run_loop(steps)]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for kind, arrays in expected.items():
        assert list(found[kind]) == list(arrays)
        for name, array in arrays.items():
            assert found[kind][name].dtype == array.dtype
            assert found[kind][name].tobytes() == array.tobytes(), f"{kind} {name}"


def test_a_resumed_loop_equals_an_uninterrupted_one(backend, tmp_path):
    whole = create(backend)
    values = run(whole, 18)
    assert whole.method.schedule_sampler.history.is_full()
    first = create(backend)
    assert run(first, 9) == values[:9]
    folder = checkpoints.save(tmp_path, 9, small_config(**SETTINGS), first.networks())
    step, _, networks = checkpoints.load_all(folder)
    resumed = create(backend, step=step, networks=networks)
    assert_same(resumed.networks(), first.networks())
    assert run(resumed, 18) == values[9:]
    assert_same(resumed.networks(), whole.networks())


def test_what_does_not_fit_is_refused(backend):
    loop = create(backend)
    networks = loop.networks()
    broken = {
        **networks,
        "trainer": {name: value for name, value in networks["trainer"].items() if name != "second_moment/out.2.bias"},
    }
    with pytest.raises(UserError, match="1 missing: second_moment/out.2.bias"):
        loop.restore(3, broken)


TINY = {"model": {"a": np.arange(40, dtype=np.float32)}, "trainer": {"first_moment/a": np.ones(3, np.float32)}}


@pytest.fixture
def saved(tmp_path):
    """Write two checkpoints and return the second one, which is also the best."""
    for step, dice in ((4, 0.25), (5, 0.5)):
        folder = checkpoints.save(
            tmp_path / "run",
            step,
            small_config(max_steps=9),
            TINY,
            validation={"step": step, "best": {"step": step, "dice": dice}},
        )
    return folder


def test_a_checkpoint_cut_at_any_byte_is_never_taken_for_whole(saved, tmp_path):
    """Cut each file of the folder; the error names the newest whole checkpoint."""
    assert checkpoints.find_whole("last", tmp_path / "run") == saved
    files = sorted(saved.iterdir())
    assert [path.name for path in files] == [
        "contents.json",
        "model.safetensors",
        "trainer.safetensors",
        "validation.json",
    ]
    for path in files:
        content = path.read_bytes()
        assert len(content) > 40
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(UserError, match="no whole checkpoint|bytes that differ from those written") as error:
                checkpoints.find_whole(saved, "")
            assert f"The newest whole checkpoint is {saved.parent / 'step_000004'}; give that one." in str(error.value)
            if path.stem == "model":
                with pytest.raises(UserError, match="no readable safetensors file"):
                    checkpoints.load(path)
        path.unlink()
        with pytest.raises(UserError, match="no whole checkpoint"):
            checkpoints.find_whole(saved, "")
        path.write_bytes(content)
    assert checkpoints.find_whole(saved, "") == checkpoints.find_whole(tmp_path / "run", "") == saved


@pytest.mark.parametrize("pointer", ["last", "best"])
def test_a_pointer_cut_at_any_byte_is_never_followed(saved, pointer):
    """Cut the pointer: a part of its name can be that of an older checkpoint. The error names the newest whole one."""
    path = saved.parent / pointer
    content = path.read_bytes()
    assert content == {"last": b"step_000005\n", "best": b"step_000005 0.500000\n"}[pointer]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        for command in (checkpoints.find, lambda place: checkpoints.find_whole(place, "")):
            with pytest.raises(UserError, match="found a cut file") as error:
                command(path)
            assert f"The newest whole checkpoint is {saved}; give that one." in str(error.value)
    path.write_bytes(content)
    assert checkpoints.find_whole(path, "") == saved and checkpoints.find(path) == saved / "model.safetensors"
    shutil.rmtree(saved)
    with pytest.raises(UserError, match="the name step_000005 without such a folder.*step_000004"):
        checkpoints.find_whole(path, "")


def test_without_any_whole_checkpoint_the_error_says_so(saved):
    for folder in saved.parent.glob("step_*"):
        (folder / "trainer.safetensors").unlink()
    with pytest.raises(UserError, match="no whole checkpoint.*There is no whole one next to it"):
        checkpoints.find_whole("last", saved.parents[1])


def test_a_changed_byte_is_found(saved):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="model.safetensors: found .* bytes that differ from those written"):
        checkpoints.find_whole(saved, "")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"lr": 1.0}, "--lr: found 1.0; expected 0.0001"),
        ({"num_channels": 64}, "--num_channels: found 64; expected 32"),
        ({"seed": 9}, "--seed: found 9; expected 3"),
        ({"max_steps": 5}, "found a checkpoint of step 5, where this training ends"),
    ],
)
def test_a_flag_that_contradicts_the_checkpoint(saved, given, message):
    with pytest.raises(UserError, match=message):
        training.resumed_config(str(saved), "", given)


@pytest.mark.parametrize("trained", ["cpu", "cuda", "cuda:3", "mps"])
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda:1"])
def test_a_training_goes_on_on_another_device(tmp_path, trained, device):
    """The device is taken anew: that of the training may be another machine's."""
    weights = {"a": np.arange(3, dtype=np.float32)}
    networks = {"model": weights, "ema_0.9999": weights, "trainer": weights}
    folder = checkpoints.save(tmp_path, 1, small_config(device=trained), networks)
    given = {} if device == "auto" else {"device": device}
    _, config, found, _ = training.resumed_config(str(folder), "", given)
    assert config == small_config(device=device)
    assert_same(found, networks)


def test_the_checkpoint_decides_but_for_where_it_ends(saved):
    step, config, networks, validated = training.resumed_config(str(saved), "", {"max_steps": 20, "save_interval": 2})
    assert validated == {"step": 5, "best": {"step": 5, "dice": 0.5}}
    assert training.resumed_config(str(saved), "", {"max_steps": 20, "val_cases": 1})[3] is None
    assert (step, config) == (5, small_config(max_steps=20, save_interval=2))
    assert sorted(networks) == ["model", "trainer"]


def save_tiny(folder, step, keep, best=None):
    validation = {"step": step, "best": {"step": best, "dice": 0.5}} if best else None
    checkpoints.save(folder, step, small_config(), {"model": {"a": np.ones(2, np.float32)}}, keep, validation)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_only_the_newest_checkpoints_stay(tmp_path):
    for step in (1, 2, 10, 9):
        save_tiny(tmp_path, step, keep=2)
    assert names(tmp_path) == ["last", "step_000009", "step_000010"]
    save_tiny(tmp_path, 3, keep=2)  # resumed from one that is gone by now
    assert names(tmp_path) == ["last", "step_000003", "step_000010"]


def test_the_best_checkpoint_stays(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save_tiny(tmp_path, step, keep=2, best=min(step, 2))
    assert names(tmp_path) == ["best", "last", "step_000002", "step_000004", "step_000005"]
    assert checkpoints.find(tmp_path / "checkpoints" / "best").parent.name == "step_000002"
    assert checkpoints.find(tmp_path).parent.name == "step_000005"


def command(data, out_dir, backend, *more):
    flags = {
        **NETWORK,
        "data_name": "ISIC",
        "data_dir": data,
        "out_dir": out_dir,
        "batch_size": 2,
        "max_steps": 8,
        "save_interval": 2,
        "log_interval": 1,
        "backend": backend,
    }
    del flags["in_ch"]
    return [
        sys.executable,
        "scripts/segmentation_train.py",
        *(str(part) for name, value in flags.items() for part in (f"--{name}", value)),
        *map(str, more),
    ]


@pytest.mark.long(seconds=40)
def test_kill_and_resume_on_the_command_line(backend, tmp_path):
    """Kill a run with kill -9 and use --resume last: files and log are those of an uninterrupted run."""
    write_isic_phantoms(tmp_path / "data", train=4, test=0, size=40, seed=1)
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command(tmp_path / "data", whole, backend.name), cwd=ROOT, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        command(tmp_path / "data", killed, backend.name),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (killed / "checkpoints" / "last").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped = int((killed / "checkpoints" / "last").read_text().strip().removeprefix("step_"))
    assert stopped < 8, "killed on the way"
    done = subprocess.run(
        command(tmp_path / "data", killed, backend.name, "--resume", "last"),
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"from step {stopped} on" in done.stderr
    expected, found = (checkpoints.load_all(folder / "checkpoints" / "step_000008") for folder in (whole, killed))
    assert found[0] == expected[0] == 8
    assert_same(found[2], expected[2])
    steps = [json.loads(line)["step"] for line in (killed / "progress.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))

"""A computation for which memory does not suffice ends in one message, and what is saved goes on.

Nothing here fills a memory: the errors of the frameworks are raised where they would come.
"""

import json
from functools import partial
from unittest import mock

import numpy as np
import pytest
from support.backends import BACKENDS, Backend
from support.small import RandomDataset, computing, small_config

from guided_diffusion_core import checkpoints, command_line, sampling, training
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system.processes import Alone
from guided_diffusion_core.system.room import NoMemory, lacks_memory

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB\nof which more"
# What PyTorch, its libraries, Jittor and Python raise.
ERRORS = {
    "CUDA": partial(RuntimeError, CUDA),
    "Apple": partial(RuntimeError, "MPS backend out of memory (MPS allocated: 17.5 GB)"),
    "cuBLAS": partial(RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "CPU": partial(RuntimeError, "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 99"),
    "Jittor": partial(RuntimeError, "GPU memory is overflow, please reduce your batch_size or data size!"),
    "Python": MemoryError,
}
every_error = pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)


class FullLoop:
    """A loop without a framework, for which memory runs out in step `full_at`."""

    group = Alone()
    step = 0

    def __init__(self, error, full_at):
        self.error = error
        self.full_at = full_at

    def run_loop(self, steps):
        for step in range(steps):
            if step + 1 == self.full_at:
                raise self.error()
            self.step = step + 1
            yield step, {"total": self.total(step), "lr": 1e-4}

    def total(self, step):
        return 1.0

    def gpu_memory_mib(self):
        return 100.0 * self.step

    def networks(self):
        return {"model": {"a": np.ones(2, np.float32)}}


@every_error
def test_the_first_step_of_a_training(error, tmp_path):
    config = small_config(batch_size=8, microbatch=4)
    with pytest.raises(UserError) as raised:
        training.run_training(FullLoop(error, 1), config, tmp_path)
    message = str(raised.value)
    assert message.startswith("training: found no memory left for --batch_size 8, --microbatch 4 at --image_size 32")
    assert "Give a smaller --microbatch or --use_checkpoint True or --mixed_precision bf16, then start" in message
    assert "\n" not in message and str(error()).partition("\n")[0] in message


@every_error
@pytest.mark.parametrize("full_at", [5, 6])
def test_a_later_step_saves_those_before(error, full_at, tmp_path):
    with pytest.raises(UserError) as raised:
        training.run_training(FullLoop(error, full_at), small_config(save_interval=2, log_interval=2), tmp_path)
    name = f"step_00000{full_at - 1}"
    advice = f"Free memory, or give --use_checkpoint True, then go on with --resume last, from {name}."
    assert advice in str(raised.value)
    assert checkpoints.find_whole("last", tmp_path).name == name
    lines = [json.loads(line)["step"] for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert lines == [2, 4, 5][: full_at - 3]


@pytest.mark.parametrize("problem", ["networks", "total"])
def test_where_nothing_can_be_saved_the_last_checkpoint_is_named(problem, tmp_path):
    """Let memory not suffice for a checkpoint either, or let a loss that is not read yet not be finite."""
    loop = FullLoop(MemoryError, 6)
    if problem == "total":
        loop.total = lambda step: float("nan") if step == 4 else 1.0
    else:
        networks = mock.Mock(side_effect=[loop.networks(), MemoryError])
        loop.networks = networks
    with pytest.raises(UserError, match="no memory left.*from step_000004"):
        training.run_training(loop, small_config(save_interval=4, log_interval=50), tmp_path)
    assert checkpoints.find_whole("last", tmp_path).name == "step_000004"


def test_no_flag_is_advised_that_is_given_already(tmp_path):
    config = small_config(use_checkpoint=True, mixed_precision="bf16")
    with pytest.raises(UserError, match="Give a smaller --microbatch, then start"):
        training.run_training(FullLoop(MemoryError, 1), config, tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("a defect"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_stay_as_they_are(error, tmp_path):
    def raising():
        return error

    with pytest.raises(type(error)) as raised:
        training.run_training(FullLoop(raising, 1), small_config(), tmp_path)
    assert raised.value is error and not lacks_memory(error)


def test_the_log_has_the_memory_of_the_gpu(tmp_path):
    training.run_training(FullLoop(None, 99), small_config(max_steps=4, log_interval=2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["gpu_memory_mib"] for line in lines] == [200, 400]
    assert "gpu_memory_mib" in (tmp_path / "progress.csv").read_text().splitlines()[0]


@every_error
def test_sampling(error):
    def sampler(images, keys):
        raise error()

    with pytest.raises(NoMemory) as raised:
        sampling.sample_batch(sampler, [RandomDataset()[0]], 4)
    message = str(raised.value)
    assert message.startswith("sampling: found no memory left for --batch_size 4 at 32x32 pixels")
    assert "Give a smaller --batch_size or --num_ensemble, or --mixed_precision bf16" in message
    assert str(error()).partition("\n")[0] in message


@every_error
def test_any_other_place_of_a_command(error, capsys):
    """Let memory run out where nothing nearer says what needs less, such as while a network is loaded."""

    def main():
        raise error()

    with pytest.raises(SystemExit) as end:
        command_line.run_command(main, "medsegdiff")
    assert end.value.code == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("medsegdiff: memory: found none left") and "Free some, or give" in message
    assert "\n" not in message and str(error()).partition("\n")[0] in message


def test_validation_costs_no_steps(tmp_path):
    """Let memory run out in the validation of a training: the message is the training's, its state is saved."""
    validation = mock.Mock(best=None)
    validation.is_due.side_effect = lambda done: done == 3
    validation.state.return_value = None

    def run(*given):
        sampling.sample_batch(mock.Mock(side_effect=MemoryError), [RandomDataset()[0]], 2)

    validation.run.side_effect = run
    config = small_config(val_dir="somewhere", val_interval=3)
    with pytest.raises(UserError, match="training: found no memory.*--resume last, from step_000003"):
        training.run_training(FullLoop(None, 99), config, tmp_path, validation)


def test_a_step_that_fails_leaves_no_trace(backend):
    """Let the network fail after the running statistics have seen a part of the batch, and compare what is saved."""
    train_util = backend.module("train_util")
    config = small_config(max_steps=9, batch_size=4, microbatch=2, highway_dropout=0.5)
    with computing("float32", backend):
        loops = [train_util.create_train_loop(config, RandomDataset()) for _ in range(2)]
        method = loops[0].method
        losses = method.losses
        calls = []

        def full(*given):
            found = losses(*given)
            calls.append(given)
            if len(calls) == 6:  # the second microbatch of the third step
                raise MemoryError
            return found

        method.losses = full
        with pytest.raises(MemoryError):
            for _ in loops[0].run_loop(9):
                pass
        for _ in loops[1].run_loop(2):
            pass
        assert loops[0].step == loops[1].step == 2
        found, expected = (loop.networks() for loop in loops)
    for kind, arrays in expected.items():
        for name, value in arrays.items():
            np.testing.assert_array_equal(found[kind][name], value, err_msg=f"{kind} {name}")


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
def test_a_training_goes_on_with_less_memory(tmp_path):
    """Let PyTorch's own exception come out of the network, then go on with the flag that the message names."""
    import torch

    train_util = Backend("pytorch").module("train_util")
    config = small_config(max_steps=5, save_interval=2)
    with computing("float32", Backend("pytorch")):
        loop = train_util.create_train_loop(config, RandomDataset())
        network = loop.model.middle_block[0]
        compute = network.forward

        def full(*given):
            if loop.step == 3:
                raise torch.OutOfMemoryError(CUDA)
            return compute(*given)

        network.forward = full
        with pytest.raises(UserError, match="CUDA out of memory.*use_checkpoint.*step_000003"):
            training.run_training(loop, config, tmp_path)
        given = {"use_checkpoint": True}
        step, resumed, networks, _ = training.resumed_config("last", tmp_path, given)
        assert step == 3 and resumed.model.use_checkpoint
        again = train_util.create_train_loop(resumed, RandomDataset(), step, networks)
        whole = train_util.create_train_loop(config, RandomDataset())
        values = [dict(found) for _, found in again.run_loop(5)]
        assert values == [dict(found) for _, found in whole.run_loop(5)][3:]

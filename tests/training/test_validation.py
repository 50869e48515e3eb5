"""Test the validation during training: its Dice, the best checkpoint, and no influence on the training."""

import csv
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image
from support.small import small_config

from guided_diffusion_core import checkpoints, training
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths, open_dataset
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.evaluation import evaluate
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.sampling.run import SamplingRun
from guided_diffusion_core.system.processes import Alone
from guided_diffusion_core.training.validation import Validation, open_validation

SIZE = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Make folders for training and validation: 4 and 3 pictures of the network's size, so that nothing is resized."""
    generator = np.random.default_rng(2)
    root = tmp_path_factory.mktemp("data")
    for split, numbers in (("Training", range(4)), ("Test", range(4, 7))):
        for kind in ("Data", "GroundTruth"):
            (root / split / f"{split}_{kind}").mkdir(parents=True)
        for number in numbers:
            image = generator.integers(0, 255, (SIZE, SIZE, 3), np.uint8)
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[4 : 12 + 2 * number, 6:20] = 255
            Image.fromarray(image).save(root / split / f"{split}_Data" / f"ISIC_000000{number}.png")
            Image.fromarray(mask).save(root / split / f"{split}_GroundTruth" / f"ISIC_000000{number}_Segmentation.png")
    return str(root / "Training"), str(root / "Test")


def settings(data, **changed):
    return small_config(
        **{
            "data_name": "ISIC",
            "data_dir": data[0],
            "val_dir": data[1],
            "val_interval": 2,
            "batch_size": 2,
            "log_interval": 3,
            "save_interval": 5,
            "max_steps": 8,
            "normalisation": "RGB / 255",
            "preset": "fast",
            **changed,
        }
    )


def paths(data):
    """Return the folders of the data as settings, since checkpoints hold only the last parts of paths."""
    return {"data_dir": data[0], "val_dir": data[1]}


def truth_masks(data):
    dataset = open_dataset(DataConfig(data_name="ISIC", data_dir=data[1]), SIZE, "Test", need_masks=True)
    return {dataset[index].noise_key: dataset[index].mask for index in range(len(dataset))}


class FakeLoop:
    """A loop without a framework, whose masks after a step are `predict(step, truth)`."""

    group = Alone()

    def __init__(self, data, predict, step=0):
        self.truths = truth_masks(data)
        self.predict = predict
        self.step = step
        self.asked = []

    def run_loop(self, steps):
        while self.step < steps:
            self.step += 1
            yield self.step - 1, {"total": 1 / self.step, "lr": 1e-4}

    def average_sampler(self, config, sampling):
        assert sampling.num_ensemble == 1
        step = self.step

        def sample(images, keys):
            self.asked.append((step, tuple(keys)))
            return np.stack([self.predict(step, self.truths[key]) for key in keys])[None].astype(np.float32)

        return sample

    def gpu_memory_mib(self):
        return None

    def networks(self):
        return {"model": {"step": np.array([self.step], np.float32)}}


def better_and_worse(step, truth):
    """Predict a full mask at step 2, the truth at 4, an empty mask at 6, and the truth again at 8."""
    return {2: np.ones_like(truth), 4: truth, 6: np.zeros_like(truth), 8: truth}[step]


def lines(folder):
    return [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]


def validated(folder):
    return {line["step"]: line["val_dice"] for line in lines(folder) if line["val_dice"] is not None}


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def train(folder, config, loop, state=None):
    validation = open_validation(config, folder, training.last_step(config.training), state)
    folder.mkdir(exist_ok=True)
    return training.run_training(loop, config, folder, validation)


def test_log_and_best_checkpoint(data, tmp_path, capsys):
    loop = FakeLoop(data, better_and_worse)
    config = settings(data, keep_checkpoints=1)
    train(tmp_path, config, loop)
    shares = [mask.mean() for mask in loop.truths.values()]
    # of a mask that covers all: 2 TP / (2 TP + FP) with TP the truth's share f and FP the rest
    everywhere = np.mean([2 * share / (1 + share) for share in shares])
    assert validated(tmp_path) == pytest.approx({2: everywhere, 4: 1.0, 6: 0.0, 8: 1.0}, abs=1e-6)
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, 4, 6, 8]
    with open(tmp_path / "progress.csv", newline="") as file:
        assert [row["val_dice"] for row in csv.DictReader(file)][:3] == [str(validated(tmp_path)[2]), "", "1.0"]
    assert names(tmp_path) == ["best", "last", "step_000004", "step_000008"], "keep 1, and the best"
    assert (tmp_path / "checkpoints" / "best").read_text() == "step_000004 1.000000\n", "the first of two equal ones"
    assert checkpoints.find(tmp_path / "checkpoints" / "best").parent.name == "step_000004"
    assert checkpoints.find(tmp_path).parent.name == "step_000008"
    assert "val_dice" in capsys.readouterr().out
    assert json.loads((tmp_path / "validation" / "summary.json").read_text())["n_cases"]
    asked = {key for step, keys in loop.asked if step == 2 for key in keys}
    assert asked == {"ISIC_0000004", "ISIC_0000005", "ISIC_0000006"}


def test_a_run_without_validation_has_no_column_and_forgets_the_best_of_an_earlier_one(data, tmp_path):
    train(tmp_path, settings(data), FakeLoop(data, better_and_worse))
    train(tmp_path, settings(data, val_dir=""), FakeLoop(data, better_and_worse))
    assert not any("val_dice" in line for line in lines(tmp_path))
    assert "best" not in names(tmp_path)


@pytest.mark.parametrize("stopped_at", [4, 5, 8])
def test_a_resumed_run_knows_the_best(data, tmp_path, stopped_at):
    whole = tmp_path / "whole"
    halves = tmp_path / "halves"
    for folder, ends in ((whole, (10,)), (halves, (stopped_at, 10))):
        state = None
        step = 0
        for end in ends:
            loop = FakeLoop(data, lambda step, truth: better_and_worse((step - 1) % 8 + 1, truth), step)
            saved = train(folder, settings(data, max_steps=end), loop, state)
            state = checkpoints.load_validation(saved)
            step = end
    for name in ("best", "last", "step_000010/validation.json"):
        assert (halves / "checkpoints" / name).read_text() == (whole / "checkpoints" / name).read_text()
    assert validated(halves) == validated(whole)


def test_ctrl_c_during_validation_saves_the_step_and_the_resumed_run_validates_it(data, tmp_path):
    pressed = []

    def press(step, truth):
        if step == 4 and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return better_and_worse(step, truth)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings(data), FakeLoop(data, press))
    assert names(tmp_path) == ["best", "last", "step_000002", "step_000004"]
    assert (tmp_path / "checkpoints" / "best").read_text().startswith("step_000002")
    assert list(validated(tmp_path)) == [2] and lines(tmp_path)[-1]["step"] == 4
    step, config, networks, state = training.resumed_config("last", tmp_path, paths(data))
    assert (step, state["step"], networks["model"]["step"][0]) == (4, 2, 4)
    train(tmp_path, config, FakeLoop(data, better_and_worse, step), state)
    assert validated(tmp_path)[4] == 1.0 and [line["step"] for line in lines(tmp_path)].count(4) == 1
    assert (tmp_path / "checkpoints" / "best").read_text() == "step_000004 1.000000\n"


def test_an_error_in_validation_costs_no_steps(data, tmp_path):
    def broken(step, truth):
        raise UserError("x.png: cut in half.")

    with pytest.raises(UserError, match="cut in half"):
        train(tmp_path, settings(data), FakeLoop(data, broken))
    assert names(tmp_path) == ["last", "step_000002"]
    assert checkpoints.load_validation(checkpoints.find_whole("last", tmp_path)) == {"step": 0, "best": None}


def test_a_best_checkpoint_of_another_folder_is_not_taken_over(data, tmp_path):
    """Resume into a new folder: only the checkpoints in it count."""
    train(tmp_path / "old", settings(data, max_steps=5), FakeLoop(data, better_and_worse))
    state = checkpoints.load_validation(checkpoints.find_whole(tmp_path / "old", ""))
    assert state["best"] == {"step": 4, "dice": 1.0}
    train(tmp_path / "new", settings(data, max_steps=6), FakeLoop(data, better_and_worse, step=5), state)
    assert (tmp_path / "new" / "checkpoints" / "best").read_text() == "step_000006 0.000000\n"


def test_some_cases_alone(data, tmp_path):
    loop = FakeLoop(data, better_and_worse)
    train(tmp_path, settings(data, val_cases=1), loop)
    assert [keys for _, keys in loop.asked] == [("ISIC_0000004",)] * 4


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"val_interval": 9}, "--val_interval: found 9; expected at most 8"),
        ({"val_dir": "nowhere"}, "nowhere"),
        ({"val_steps": 1001}, "1001"),
        ({"val_slices": "odd"}, "all"),
    ],
)
def test_what_cannot_be_validated_is_refused_before_training(data, tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        open_validation(settings(data, **changed), tmp_path, 8)


@pytest.mark.parametrize(
    "changed, steps",
    [
        ({}, 5),
        ({"sample_steps": 40}, 10),
        ({"sample_steps": 0}, 10),
        ({"val_steps": 25}, 25),
        ({"timestep_respacing": "4"}, 4),
    ],
)
def test_few_network_evaluations(data, tmp_path, changed, steps):
    assert Validation(settings(data, **changed), tmp_path).sampling.sample_steps == steps


def test_the_ancestral_sampler_is_not_used_in_fewer_steps_than_trained(data, tmp_path):
    """Require DDIM there, since the learned variance of a short training spoils few ancestral steps."""
    few, every = (
        Validation(settings(data, sampler="ancestral", diffusion_steps=30, val_steps=steps), tmp_path).sampling
        for steps in (0, 30)
    )
    assert (few.sampler, few.eta, few.sample_steps) == ("ddim", 1.0, 10)
    assert (every.sampler, every.sample_steps) == ("ancestral", 30)


def create(backend, config, **keywords):
    dataset = open_dataset(config.data, SIZE, "Training", need_masks=True)
    return backend.module("train_util").create_train_loop(config, dataset, **keywords)


def assert_same(found, expected):
    for kind, arrays in expected.items():
        for name, array in arrays.items():
            assert found[kind][name].tobytes() == array.tobytes(), f"{kind} {name}"


def test_training_does_not_notice_and_the_figure_is_that_of_the_commands(backend, data, tmp_path):
    """Train with highway dropout and batch norms, interrupt and resume, and sample and score the best checkpoint."""
    config = settings(data, highway_dropout=0.5, lr=1e-3, max_steps=4, val_interval=1, ema_rate="0.5,0.9")
    plain = create(backend, config)
    checked = create(backend, config)
    for _ in plain.run_loop(4):
        pass
    train(tmp_path / "whole", config, checked)
    assert_same(checked.networks(), plain.networks())

    first = config.replace(max_steps=2)
    train(tmp_path / "halves", first, create(backend, first))
    step, resumed, networks, state = training.resumed_config(
        "last", tmp_path / "halves", {**paths(data), "max_steps": 4}
    )
    second = create(backend, resumed, step=step, networks=networks)
    train(tmp_path / "halves", resumed, second, state)
    assert_same(second.networks(), plain.networks())
    pointers = [(tmp_path / run / "checkpoints" / "best").read_text() for run in ("whole", "halves")]
    assert pointers[0] == pointers[1] and list(validated(tmp_path / "whole")) == [1, 2, 3, 4]

    path = checkpoints.find(tmp_path / "whole" / "checkpoints" / "best")
    model, diffusion, trained = backend.module("script_util").load_model_and_diffusion(path)
    sampling = trained.replace(num_ensemble=1).sampling
    sampler = backend.module("sample_util").EnsembleSampler(model, diffusion, sampling, NoiseTape(trained.seed))
    dataset = open_dataset(DataConfig(data_name="ISIC", data_dir=data[1]), SIZE, "Test", need_masks=False)
    SamplingRun(dataset, tmp_path / "masks", 2, sampling.threshold, {}).run(sampler)
    summary = evaluate(tmp_path / "masks", list_truths(DataConfig(data_name="ISIC", data_dir=data[1])), 0.5)
    step = int(path.parent.name.removeprefix("step_"))
    assert path.name == "ema_0.5.safetensors"
    assert validated(tmp_path / "whole")[step] == summary["foreground_mean"]["Dice"] > 0

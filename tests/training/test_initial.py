"""Test a training that starts with the weights of another network: what fits is taken, the rest is drawn and listed."""

import json
import math

import numpy as np
import pytest
from support.commands import assert_refused
from support.small import NETWORK, RandomDataset, random_state, small_config

from guided_diffusion_core import checkpoints, training
from guided_diffusion_core.checkpoints import files
from guided_diffusion_core.conversion import convert
from guided_diffusion_core.data import phantoms
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.registry import initial_state, state_shapes

# The trained network, and other ones that share a part of it.
TRAINED = small_config()
OTHERS = {
    "the same": {},
    "another seed": {"seed": 9},
    "two masks": {"mask_channels": 2, "in_ch": 5},
    "one image channel": {"in_ch": 2},
    "more blocks": {"num_res_blocks": 2},
    "another output": {"learn_sigma": False},
    "another embedding": {"use_scale_shift_norm": True},
    "more levels": {"channel_mult": "1,2,2"},
    "another version": {"version": "1", "channel_mult": "1,1,2,2"},
}


def weights(config=TRAINED, seed=1):
    state = random_state(state_shapes(config.model), seed)
    return {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in state.items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint's file of random weights."""
    path = tmp_path_factory.mktemp("source") / "x.safetensors"
    path.write_bytes(checkpoints.to_bytes(7, TRAINED, "ema_0.9999", weights()))
    return path


def expected_state(config, found):
    """The start of a training: of each tensor the one that was found if it has the same name and shape."""
    drawn = initial_state(config.model, config.seed)
    return {
        name: found[name] if found.get(name, np.zeros(0)).shape == value.shape else value
        for name, value in drawn.items()
    }


class TestWhatFits:
    @pytest.mark.parametrize("name", OTHERS)
    def test_it_is_taken_and_the_rest_is_drawn(self, source, name):
        config = small_config(init_from=str(source), **OTHERS[name])
        initial = training.initial_weights(config)
        expected = expected_state(config, weights())
        assert list(initial.arrays) == list(expected)
        for tensor, value in expected.items():
            assert initial.arrays[tensor].dtype == value.dtype
            np.testing.assert_array_equal(initial.arrays[tensor], value, err_msg=tensor)

    @pytest.mark.parametrize("name", OTHERS)
    def test_all_of_it_is_listed(self, source, name):
        config = small_config(init_from=str(source), **OTHERS[name])
        initial = training.initial_weights(config)
        shapes = {tensor: tuple(shape) for tensor, shape in state_shapes(config.model).items()}
        there = {tensor: value.shape for tensor, value in weights().items()}
        assert set(initial.taken) == {tensor for tensor in shapes if there.get(tensor) == shapes[tensor]}
        assert {text.split()[0] for text in initial.drawn} == shapes.keys() - set(initial.taken)
        assert set(initial.left_out) == there.keys() - shapes.keys()
        share = sum(math.prod(shapes[tensor]) for tensor in initial.taken) / sum(map(math.prod, shapes.values()))
        assert f"{len(initial.taken)} of {len(shapes)} tensors" in initial.lines()[0]
        assert f"{100 * share:.1f} % of all numbers" in initial.lines()[0]
        assert bool(initial.differing) == bool(OTHERS[name].keys() - {"seed"})

    def test_settings_that_no_shape_shows_are_named(self, source):
        settings = {"num_heads": 4, "predict_xstart": True, "normalisation": "RGB / 255"}
        initial = training.initial_weights(small_config(init_from=str(source), **settings))
        assert len(initial.taken) == len(weights())
        said = initial.lines()[-1]
        for text in ("num_heads 4, there 2", "predict_xstart True, there False", "normalisation 'RGB / 255', there ''"):
            assert text in said

    def test_another_shape_is_named(self, source):
        lines = training.initial_weights(small_config(init_from=str(source), in_ch=2)).lines()
        assert "input_blocks.0.0.weight (32, 2, 3, 3), there (32, 4, 3, 3)" in lines[1]


class TestSources:
    def test_every_kind_of_checkpoint(self, tmp_path):
        average = weights(seed=2)
        folder = checkpoints.save(tmp_path / "run", 3, TRAINED, {"model": weights(), "ema_0.9999": average})
        convert.write(tmp_path / "x.pt", convert.read(folder / "model.safetensors"))
        given = {"image_size": 32, "num_heads": 2}
        convert.write(tmp_path / "converted.safetensors", convert.read(tmp_path / "x.pt", given))
        for path, found in (
            (tmp_path / "run", average),
            (tmp_path / "run" / "checkpoints" / "last", average),
            (folder, average),
            (folder / "model.safetensors", weights()),
            (tmp_path / "converted.safetensors", weights()),
        ):
            initial = training.initial_weights(small_config(init_from=str(path)))
            assert len(initial.taken) == len(found)
            np.testing.assert_array_equal(initial.arrays["out.2.weight"], found["out.2.weight"])

    @pytest.mark.parametrize(
        "name, text",
        [
            ("nowhere", "--init_from: found no file or folder"),
            ("x.pt", "--init_from: .*medsegdiff convert"),
            ("other.safetensors", "no tensor of this network's names and shapes among 1; .*num_channels 32, there 64"),
            ("broken.safetensors", "not finite in out.2.bias"),
            ("text.safetensors", "no readable safetensors file"),
        ],
    )
    def test_what_cannot_be_used(self, tmp_path, name, text):
        (tmp_path / "x.pt").write_bytes(b"x")
        (tmp_path / "text.safetensors").write_bytes(b"x")
        other = small_config(num_channels=64)
        one = {"fc.weight": np.zeros((2, 2), np.float32)}
        (tmp_path / "other.safetensors").write_bytes(checkpoints.to_bytes(1, other, "model", one))
        broken = {**weights(), "out.2.bias": np.array([np.nan, 0], np.float32)}
        (tmp_path / "broken.safetensors").write_bytes(checkpoints.to_bytes(1, TRAINED, "model", broken))
        with pytest.raises(UserError, match=text):
            training.initial_weights(small_config(init_from=str(tmp_path / name)))

    def test_it_contradicts_resume(self, tmp_path, source):
        checkpoints.save(tmp_path, 3, TRAINED, {"model": weights()})
        with pytest.raises(UserError, match="--init_from: found given with --resume last"):
            training.resumed_config("last", tmp_path, {"init_from": str(source)})


@pytest.mark.parametrize("name", ["the same", "two masks"])
def test_the_loop_starts_with_them(backend, source, name):
    """Network and averages are those weights, the optimizer and the step are new, and steps go on from there."""
    config = small_config(init_from=str(source), ema_rate="0.9,0.5", **OTHERS[name])
    initial = training.initial_weights(config)
    labels = ("a", "b")[: config.model.mask_channels]
    loop = backend.module("train_util").create_train_loop(config, RandomDataset(labels=labels), initial=initial.arrays)
    assert loop.step == 0
    networks = loop.networks()
    for kind in ("model", "ema_0.9", "ema_0.5"):
        for tensor, value in initial.arrays.items():
            np.testing.assert_array_equal(networks[kind][tensor], value, err_msg=tensor)
    moments = [value for tensor, value in networks["trainer"].items() if "moment/" in tensor]
    assert moments and not any(value.any() for value in moments)
    [(step, values)] = loop.run_loop(1)
    assert step == 0 and np.isfinite(values["total"])
    after = loop.networks()
    moved = [
        tensor for tensor in networks["model"] if not np.array_equal(after["model"][tensor], networks["model"][tensor])
    ]
    assert moved


FLAGS = [text for name, value in NETWORK.items() for text in (f"--{name}", value) if name not in ("in_ch",)]


def test_the_command_records_them_and_goes_on(command, source, tmp_path):
    phantoms.write_image_phantoms(tmp_path / "data", 2, 32, 1)
    run = tmp_path / "run"
    flags = ["--data_name", "IMAGES", "--data_dir", tmp_path / "data", "--out_dir", run, *FLAGS]
    flags += ["--batch_size", 2, "--init_from", source]
    code, printed, errors = command("segmentation_train", *flags, "--max_steps", 1, "--dry_run")
    assert code == 0, errors
    assert "--init_from: 283 of 283 tensors are those of" in errors and not run.exists()
    code, _, errors = command("segmentation_train", *flags, "--max_steps", 1)
    assert code == 0, errors
    record = json.loads((run / "config.json").read_text())
    assert record["initial_weights"]["taken"] == 283 and record["training"]["init_from"] == str(source)
    config = checkpoints.read_config(checkpoints.find(run))
    assert config.training.init_from == source.name
    assert_refused(command("segmentation_train", *flags, "--resume", "last", "--max_steps", 2), "--init_from")
    source_flag = flags.index("--init_from")
    code, _, errors = command("segmentation_train", *flags[:source_flag], "--resume", "last", "--max_steps", 2)
    assert code == 0, errors
    assert files.load_all(checkpoints.find_whole("last", run))[0] == 2
    # and still says where the weights came from
    after = json.loads((run / "config.json").read_text())
    assert after["initial_weights"] == record["initial_weights"]
    assert after["training"]["init_from"] == str(source)

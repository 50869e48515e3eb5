"""Test sound checkpoints as other software writes them: their types, their company, their names and their endings."""

import argparse
import datetime
import io
import pathlib
import pickle
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
from support import hostile
from support.conversions import FLAGS, GIVEN, assert_bitwise, in_order, needs_pytorch

from guided_diffusion_core import checkpoints
from guided_diffusion_core.conversion import convert
from guided_diffusion_core.conversion.jittor_files import write_pkl
from guided_diffusion_core.conversion.names import network_and_step
from guided_diffusion_core.conversion.torch_files import write_pt
from guided_diffusion_core.errors import UserError

# Words that only a broken or a hostile file deserves.
HARSH = ("Copy it again", "Do not use this file", "damaged")


def saved(tree, legacy=False):
    """Return the bytes of torch.save."""
    import torch

    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def tensors(weights):
    import torch

    return OrderedDict((name, torch.from_numpy(value.copy())) for name, value in weights.items())


def read(tmp_path, content, name="x.pt", key=""):
    path = tmp_path / name
    path.write_bytes(content)
    return convert.read(path, GIVEN, key)


def refusal(tmp_path, content, name="x.pt", key=""):
    with pytest.raises(UserError) as error:
        read(tmp_path, content, name, key)
    assert name in str(error.value) or key
    assert not any(word in str(error.value) for word in HARSH)
    return str(error.value)


class TestHalfPrecision:
    def test_bfloat16_in_safetensors(self, tmp_path, weights):
        """A bfloat16 is the upper half of a float32, so that values cut there survive to the bit."""
        cut = {}
        header = {}
        data = b""
        for name, value in weights.items():
            kind = "I64"
            cut[name] = value
            content = value.tobytes()
            if value.dtype == np.float32:
                kind = "BF16"
                upper = (value.view(np.uint32) >> 16).astype(np.uint16)
                cut[name] = (upper.astype(np.uint32) << 16).view(np.float32)
                content = upper.tobytes()
            offsets = [len(data), len(data) + len(content)]
            header[name] = {"dtype": kind, "shape": value.shape, "data_offsets": offsets}
            data += content
        found = read(tmp_path, hostile.safetensors(header, data), "x.safetensors")
        assert_bitwise(found.arrays, cut)
        assert any("widened from bfloat16" in note for note in found.notes)

    @needs_pytorch
    @pytest.mark.parametrize("kind", ["bfloat16", "float16"])
    @pytest.mark.parametrize("ending", ["zip", "legacy", "safetensors"])
    def test_against_torch(self, tmp_path, weights, kind, ending):
        import torch
        from safetensors.torch import save

        half = {
            name: value.to(getattr(torch, kind)) if value.is_floating_point() else value
            for name, value in tensors(weights).items()
        }
        content = save(half) if ending == "safetensors" else saved(half, legacy=ending == "legacy")
        found = read(tmp_path, content, "x.safetensors" if ending == "safetensors" else "x.pt")
        expected = {
            name: value.float().numpy() if value.is_floating_point() else value.numpy() for name, value in half.items()
        }
        assert_bitwise(found.arrays, expected)
        assert any(f"widened from {kind} to float32" in note for note in found.notes)

    @needs_pytorch
    def test_types_without_a_number_in_numpy_are_named(self, tmp_path):
        import torch
        from safetensors.torch import save

        message = refusal(tmp_path, save({"a": torch.zeros(2).to(torch.float8_e4m3fn)}), "x.safetensors")
        assert "a F8_E4M3" in message and "float32" in message


def company():
    """Return what trainings save beside their weights, by the name of the weights."""
    return {
        "state_dict": {"best_dice": np.float32(0.5), "epoch": np.int64(3), "history": [0.5, np.float64(0.25)]},
        "model": {
            "optimizer": {"state": {0: {"exp_avg": np.zeros((2, 2))}}, "param_groups": [{"lr": 1e-4}]},
            "args": argparse.Namespace(lr=1e-4),
            "rng": np.random.RandomState(0).get_state(),
        },
        "ema": {
            "started": datetime.datetime(2024, 5, 17),
            "folder": pathlib.PurePosixPath("/data"),
            "counts": defaultdict(int, a=1),
            "shape": {(1, 2): {3, 4}},
            "scale": complex(1, 2),
        },
        "network/state_dict": {"scaler": {"scale": 65536.0}, "losses": {"dice": np.array(0.5)}},
    }


def beside(weights, key, others):
    tree = weights
    for part in reversed(key.split("/")):
        tree = {part: tree}
    return {**tree, **others}


class TestTrainingCheckpoints:
    @pytest.mark.parametrize("key", company())
    @pytest.mark.parametrize("protocol", [2, 4, 5])
    def test_weights_are_read_beside_anything(self, tmp_path, weights, key, protocol):
        others = company()[key]
        found = read(tmp_path, pickle.dumps(beside(weights, key, others), protocol), "x.pkl")
        assert_bitwise(found.arrays, weights)
        assert found.notes[0] == f"The weights are those of {key}; passed over: {', '.join(others)}."

    @needs_pytorch
    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("key", company())
    def test_of_torch(self, tmp_path, weights, key, legacy):
        import torch

        others = {**company()[key], "device": torch.device("cpu"), "size": torch.Size([2, 3]), "type": torch.float32}
        network = torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam(network.parameters())
        others["optim"] = optimizer.state_dict()
        others["scheduler"] = torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict()
        content = saved(beside(tensors(weights), key, others), legacy)
        assert_bitwise(read(tmp_path, content).arrays, weights)

    def test_several_state_dicts_are_listed_and_chosen(self, tmp_path, weights, convert_checkpoint):
        other = {name: value + 1 for name, value in weights.items()}
        content = pickle.dumps({"model": weights, "ema": {"shadow": other}, "step": 3}, 4)
        message = refusal(tmp_path, content, "x.pkl")
        assert f"model ({len(weights)} tensors), ema/shadow ({len(weights)} tensors)" in message
        assert "--state model" in message
        assert_bitwise(read(tmp_path, content, "x.pkl", "ema/shadow").arrays, other)
        assert "'emma'" in refusal(tmp_path, content, "x.pkl", "emma")
        flags = (tmp_path / "x.pkl", tmp_path / "y.safetensors", *FLAGS)
        assert convert_checkpoint(*flags)[0] == 2
        code, printed, _ = convert_checkpoint(*flags, "--state", "model")
        assert code == 0 and "The weights are those of model; passed over: ema, step." in printed
        assert_bitwise(in_order(checkpoints.load(tmp_path / "y.safetensors")[1]), in_order(weights))

    def test_a_state_dict_with_something_else_in_it_is_not_passed_over(self, tmp_path, weights):
        content = pickle.dumps({"model": weights, "ema": {**weights, "updates": 3}}, 4)
        assert "ema" in refusal(tmp_path, content, "x.pkl")
        assert "not arrays: updates" in refusal(tmp_path, content, "x.pkl", "ema")

    def test_a_name_where_there_is_nothing_to_choose(self, tmp_path, weights, source):
        for content, name in ((write_pkl(weights), "x.pkl"), (write_pt(weights), "x.pt")):
            assert "--state: found 'model'" in refusal(tmp_path, content, name, "model")
        convert.write(tmp_path / "y.safetensors", source)
        with pytest.raises(UserError, match="--state: found 'model'"):
            convert.read(tmp_path / "y.safetensors", {}, "model")


class TestWholeObjects:
    @needs_pytorch
    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("place", ["alone", "in a dict", "below"])
    def test_a_pickled_model(self, tmp_path, place, legacy):
        import torch

        model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
        tree = {"alone": model, "in a dict": {"net": model, "epoch": 3}, "below": {"a": {"net": model}}}[place]
        message = refusal(tmp_path, saved(tree, legacy))
        assert "torch.nn.modules.container.Sequential" in message or place == "below"
        assert "state_dict()" in message or place == "below"

    @pytest.mark.parametrize("protocol", [0, 1, 2, 4])
    @pytest.mark.parametrize("thing", [argparse.Namespace(a=1), datetime.date(2024, 5, 17), np.random.RandomState(0)])
    def test_a_pickled_object(self, tmp_path, thing, protocol):
        message = refusal(tmp_path, pickle.dumps(thing, protocol), "x.pkl")
        assert type(thing).__name__.lower() in message.lower() and "state_dict()" in message

    @needs_pytorch
    def test_a_program_of_torchscript(self, tmp_path):
        import torch

        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(torch.nn.Conv2d(1, 1, 1)), buffer)
        (tmp_path / "x.pt").write_bytes(buffer.getvalue())
        with pytest.raises(UserError, match=r"TorchScript.*state_dict\(\)"):
            convert.read(tmp_path / "x.pt")

    @pytest.mark.parametrize(
        "content, text",
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            (b"\n<!DOCTYPE html><html>", "a web page"),
            (b"\x1f\x8b\x08\x00", "Unpack"),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
        ],
    )
    def test_another_kind_of_file(self, tmp_path, content, text):
        for ending in (".pt", ".pkl", ".safetensors"):
            assert text in refusal(tmp_path, content, f"x{ending}")


class TestEndings:
    @pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.pkl", "x.safetensors"])
    def test_the_content_decides(self, tmp_path, source, weights, name):
        convert.write(tmp_path / "own.safetensors", source)
        contents = {
            ".pt": write_pt(weights),
            ".pkl": write_pkl(weights),
            ".safetensors": (tmp_path / "own.safetensors").read_bytes(),
        }
        for kind, content in contents.items():
            found = read(tmp_path, content, name)
            assert_bitwise(found.arrays, weights)
            said = f"The content is that of a {kind} file, which is read as such." in found.notes
            assert said == (name.replace(".pth", ".pt") != f"x{kind}")

    @needs_pytorch
    def test_the_legacy_format_named_pkl(self, tmp_path, weights):
        assert_bitwise(read(tmp_path, saved(tensors(weights), legacy=True), "x.pkl").arrays, weights)


class TestPrefixes:
    @pytest.mark.parametrize(
        "renamed, said",
        [
            (lambda name: f"_orig_mod.{name}", ["_orig_mod"]),
            (lambda name: f"module._orig_mod.{name}", ["_orig_mod", "module"]),
            (lambda name: f"_orig_mod.module.{name}", ["_orig_mod", "module"]),
            (lambda name: f"module.module.{name}", ["module"]),
            (lambda name: name.replace("hwm.", "hwm._orig_mod."), ["_orig_mod"]),
            (lambda name: f"module.{name}" if name.startswith("out.") else name, ["module"]),
        ],
    )
    def test_they_are_dropped(self, tmp_path, weights, renamed, said):
        found = read(tmp_path, write_pt({renamed(name): value for name, value in weights.items()}))
        assert_bitwise(found.arrays, weights)
        assert [note for note in found.notes if "prefix" in note] == [
            f"The prefix {name}. was removed." for name in said
        ]

    def test_twice_the_same_name_is_refused(self, tmp_path, weights):
        message = refusal(tmp_path, write_pt({**weights, "_orig_mod.out.0.bias": weights["out.0.bias"]}))
        assert "out.0.bias with and without a prefix" in message

    def test_the_counter_of_an_averaged_model(self, tmp_path, weights):
        averaged = {"n_averaged": np.array(7), **{f"module.{name}": value for name, value in weights.items()}}
        assert_bitwise(read(tmp_path, write_pt(averaged)).arrays, weights)


@pytest.mark.parametrize(
    "name, network, step",
    [
        ("savedmodel050000.pt", "model", 50000),
        ("emasavedmodel_0.9999_050000.pt", "ema_0.9999", 50000),
        ("model050000.pt", "model", 50000),
        ("ema_0.9999_050000.pt", "ema_0.9999", 50000),
        ("ema_0.9999_050000 (1).pt", "ema_0.9999", 50000),
        ("savedmodel050000(2).pt", "model", 50000),
        ("ema_0.999_000010.pkl", "ema_0.999", 10),
        ("ema_1_000010.pth", "ema_1", 10),
        ("mymodel050000.pt", "model", 0),
        ("model.pt", "model", 0),
        ("ema_x_000010.pt", "model", 0),
    ],
)
def test_rate_and_step_in_the_names_of_files(name, network, step):
    assert network_and_step(f"/somewhere/{name}") == (network, step)


def test_the_optimizer_of_guided_diffusion_is_named(tmp_path):
    tree = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 1e-4}]}
    assert "Use model* or ema_*" in refusal(tmp_path, pickle.dumps(tree, 4), "opt050000.pt")

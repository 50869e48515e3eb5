"""Test the conversion of checkpoints: bitwise in every direction, names, and the inferred configuration."""

import dataclasses
import json
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
from support.backends import ROOT
from support.conversions import CONFIG, FORMATS, GIVEN, assert_bitwise, in_order, without_counters
from support.small import NETWORK

from guided_diffusion_core import checkpoints, config
from guided_diffusion_core.conversion import convert
from guided_diffusion_core.conversion.infer_config import infer
from guided_diffusion_core.conversion.jittor_files import write_pkl
from guided_diffusion_core.conversion.torch_files import write_pt
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.medsegdiff.infer import VISIBLE
from guided_diffusion_core.networks.registry import initial_state, state_shapes


class TestEveryDirection:
    @pytest.mark.parametrize("first, second, third", list(permutations(FORMATS, 3)))
    def test_is_bitwise(self, tmp_path, source, first, second, third):
        paths = [tmp_path / f"{index}{ending}" for index, ending in enumerate((first, second, third))]
        convert.write(paths[0], source)
        for before, after in zip(paths, paths[1:]):
            convert.write(after, convert.read(before, GIVEN))
        found = convert.read(paths[2], GIVEN)
        assert_bitwise(found.arrays, source.arrays)
        assert (found.config.model, found.config.diffusion) == (CONFIG.model, CONFIG.diffusion)
        assert (found.config.data.data_name, found.config.normalisation) == ("ISIC", "RGB / 255")

    @pytest.mark.parametrize("ending", [".pt", ".pkl"])  # safetensors orders its metadata by chance
    def test_the_same_weights_give_the_same_bytes(self, tmp_path, source, ending):
        for name in "ab":
            convert.write(tmp_path / f"{name}{ending}", source)
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()

    def test_nan_infinity_and_negative_zero_stay(self, tmp_path, source):
        strange = np.frombuffer(b"\x01\x00\xc0\x7f\x00\x00\x80\xff\x00\x00\x00\x80\x01\x00\x00\x00", np.float32)
        arrays = dict(source.arrays)
        arrays["out.0.bias"] = np.resize(strange, arrays["out.0.bias"].shape)
        for ending in FORMATS:
            path = tmp_path / f"x{ending}"
            convert.write(path, convert.Checkpoint(arrays, CONFIG, "model", 0, ()))
            assert_bitwise(convert.read(path, GIVEN).arrays, arrays)

    def test_either_backend_loads_a_converted_file(self, tmp_path, weights, backend):
        pt = tmp_path / "emasavedmodel_0.9999_000700.pt"
        safetensors = tmp_path / "x.safetensors"
        pt.write_bytes(write_pt(weights))
        found = convert.read(pt, GIVEN)
        assert (found.network, found.step) == ("ema_0.9999", 700)
        convert.write(safetensors, found)
        assert checkpoints.find(safetensors) == safetensors
        model, _, loaded = backend.module("script_util").load_model_and_diffusion(safetensors)
        assert loaded.model == CONFIG.model
        assert_bitwise(in_order(backend.module("runtime").state_arrays(model)), in_order(weights))


class TestNames:
    def test_prefix_of_parallel_training(self, tmp_path, weights):
        path = tmp_path / "x.pt"
        path.write_bytes(write_pt({f"module.{name}": value for name, value in weights.items()}))
        found = convert.read(path, GIVEN)
        assert_bitwise(found.arrays, weights)
        assert any("module." in note for note in found.notes)

    def test_a_name_with_and_without_prefix_is_refused(self, tmp_path, weights):
        path = tmp_path / "x.pt"
        path.write_bytes(write_pt({**weights, "module.out.0.bias": weights["out.0.bias"]}))
        with pytest.raises(UserError, match="out.0.bias with and without"):
            convert.read(path, GIVEN)

    def test_missing_counters_are_zero_and_said(self, tmp_path, weights):
        path = tmp_path / "x.pkl"
        path.write_bytes(write_pkl(without_counters(weights)))
        found = convert.read(path, GIVEN)
        assert_bitwise(found.arrays, weights)
        assert any("22 missing num_batches_tracked" in note for note in found.notes)

    def test_a_network_of_the_port_to_jittor(self, tmp_path, weights):
        """A file of XD-XXF/MedSegDiff-Jittor has these names, no counters and one output channel."""
        arrays = without_counters(weights)
        arrays |= {name: arrays[name][:1] for name in ("out.2.weight", "out.2.bias")}
        path = tmp_path / "emasavedmodel_0.9999_000010.pkl"
        path.write_bytes(write_pkl(arrays))
        found = convert.read(path, GIVEN)
        assert not found.config.model.learn_sigma and found.step == 10
        assert_bitwise(without_counters(found.arrays), arrays)

    @pytest.mark.parametrize("ending, written", [(".pkl", write_pkl), (".pt", write_pt), (".safetensors", None)])
    def test_all_faults_are_listed_together(self, tmp_path, weights, ending, written):
        arrays = dict(weights)
        arrays["extra.weight"] = arrays.pop("out.2.bias")
        arrays["time_embed.0.bias"] = np.zeros(3, np.float32)
        arrays.pop("input_blocks.0.0.weight")
        path = tmp_path / f"x{ending}"
        path.write_bytes(written(arrays) if written else checkpoints.to_bytes(0, CONFIG, "model", arrays))
        with pytest.raises(UserError) as error:
            convert.read(path, GIVEN if written else {})
        for text in (
            path.name,
            "2 missing: input_blocks.0.0.weight, out.2.bias",
            "1 unexpected: extra.weight",
            "1 of another shape: time_embed.0.bias (3,) instead of (128,)",
        ):
            assert text in str(error.value)

    def test_types_that_no_network_has_are_refused(self, tmp_path, weights):
        path = tmp_path / "x.pt"
        path.write_bytes(write_pt({**weights, "out.0.bias": weights["out.0.bias"].astype(np.int32)}))
        with pytest.raises(UserError, match="out.0.bias int32"):
            convert.read(path, GIVEN)

    def test_float16_is_widened_and_said(self, tmp_path, weights):
        half = weights["out.0.bias"].astype(np.float16)
        path = tmp_path / "x.pkl"
        path.write_bytes(write_pkl({**weights, "out.0.bias": half}))
        found = convert.read(path, GIVEN)
        assert_bitwise(found.arrays, {**weights, "out.0.bias": half.astype(np.float32)})
        assert any("1 tensors were widened" in note for note in found.notes)


class TestConfiguration:
    @pytest.mark.parametrize(
        "path", sorted((ROOT / "tests" / "golden").glob("keys_new_*.json")), ids=lambda path: path.stem
    )
    def test_of_the_originals_networks(self, path):
        recorded = json.loads(path.read_text())
        shapes = {name: tuple(shape) for name, shape in dict(recorded["state_dict"]).items()}
        found, assumed = infer(shapes, {}, path.name)
        for name in (*VISIBLE, "image_size"):
            assert getattr(found.model, name) == {"mask_channels": 1, **recorded["config"]}[name], name
        assert "num_heads" in assumed and "image_size" in assumed and "num_channels" not in assumed

    @pytest.mark.parametrize(
        "settings",
        [
            {"channel_mult": "1"},
            {"channel_mult": "2,1,1", "num_res_blocks": 3},
            {"attention_resolutions": ""},
            {"channel_mult": "1,2,2", "attention_resolutions": "32,8", "resblock_updown": True},
            {"use_scale_shift_norm": True, "learn_sigma": False, "in_ch": 2, "num_channels": 64},
            {"mask_channels": 2, "in_ch": 5, "learn_sigma": False},
            {"mask_channels": 3, "in_ch": 7, "version": "1"},
        ],
    )
    def test_every_setting_that_shapes_show(self, settings):
        settings = {**NETWORK, "attention_resolutions": "32", **settings}
        model = config.resolve(settings).model
        found, _ = infer(state_shapes(model), {"image_size": 32, "num_heads": 2}, "x")
        assert found.model == model

    @pytest.mark.parametrize(
        "given, text",
        [
            ({"num_channels": 64}, "--num_channels: found '?64'?; expected '?32"),
            ({"attention_resolutions": "8"}, "--attention_resolutions.*8.*16"),
            ({"channel_mult": "1,3"}, "--channel_mult.*1,3.*1,2"),
            ({"learn_sigma": False}, "--learn_sigma"),
        ],
    )
    @pytest.mark.parametrize("ending", [".pt", ".safetensors"])
    def test_a_contradicting_flag_is_refused(self, tmp_path, source, given, text, ending):
        convert.write(tmp_path / f"x{ending}", source)
        with pytest.raises(UserError, match=text):
            convert.read(tmp_path / f"x{ending}", {**GIVEN, **given})

    def test_version_1_without_the_layer_that_the_original_draws_at_random(self, tmp_path, capsys):
        model = dataclasses.replace(CONFIG.model, version="1", channel_mult="1,1,2,2")
        state = initial_state(model, seed=2)
        given = {name: value for name, value in state.items() if "bottleneck_embed" not in name}
        (tmp_path / "x.pt").write_bytes(write_pt(given))
        flags = {name: value for name, value in GIVEN.items() if name != "image_size"}
        found = convert.read(tmp_path / "x.pt", flags)
        assert (found.config.model.version, found.config.model.image_size) == ("1", model.image_size)
        assert "hwm.bottleneck_embed" in capsys.readouterr().err
        assert list(found.arrays) == list(state)
        for name, value in state.items():
            np.testing.assert_array_equal(found.arrays[name], given.get(name, np.zeros_like(value)))
        with pytest.raises(UserError, match="--image_size: found 64; expected 32"):
            convert.read(tmp_path / "x.pt", {**flags, "image_size": 64})

    @pytest.mark.parametrize("arrays", [{"fc.weight": np.zeros((2, 2), np.float32)}, {}])
    def test_another_network_is_refused(self, tmp_path, arrays):
        (tmp_path / "x.pt").write_bytes(write_pt(arrays))
        with pytest.raises(UserError, match="x.pt"):
            convert.read(tmp_path / "x.pt")

    def test_the_printed_flags_bring_the_configuration_back(self, tmp_path, source, convert_checkpoint):
        convert.write(tmp_path / "a.safetensors", source)
        code, printed, _ = convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.pkl")
        assert code == 0
        flags = printed.splitlines()[-1].partition("in it: ")[2]
        line = f"{sys.executable} scripts/convert_checkpoint.py {tmp_path}/b.pkl {tmp_path}/c.safetensors {flags}"
        subprocess.run(line, shell=True, check=True, cwd=ROOT)
        assert checkpoints.read_config(tmp_path / "c.safetensors").model == CONFIG.model

"""Conversion of checkpoints: bitwise in every direction, the frameworks as oracles, hostile files."""
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import pickle
import runpy
import subprocess
import sys
import zipfile
from collections import OrderedDict
from itertools import permutations

import numpy as np
import pytest
from conftest import BACKENDS, ROOT
from small import NETWORK, random_state, small_config

from guided_diffusion_core import checkpoint, config, convert, verify
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.infer_config import VISIBLE, infer
from guided_diffusion_core.initialization import initial_state
from guided_diffusion_core.pickles import read_pkl, write_pkl
from guided_diffusion_core.state_shapes import state_shapes
from guided_diffusion_core.torch_files import read_pt, write_pt
from guided_diffusion_core.unet_plan import make_plan

FORMATS = (".pt", ".pth", ".pkl", ".safetensors")
CONFIG = small_config(normalisation="RGB / 255", data_name="ISIC")
GIVEN = {"image_size": 32, "num_heads": 2, "dropout": 0.1}  # what weights do not show
FLAGS = [text for name, value in GIVEN.items() for text in (f"--{name}", str(value))]

needs_pytorch = pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
needs_jittor = pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor is not among MEDSEGDIFF_BACKENDS")


@pytest.fixture(scope="module")
def weights():
    state = random_state(state_shapes(make_plan(CONFIG.model)))
    return {name: value if value.dtype == np.int64 else value.astype(np.float32) for name, value in state.items()}


@pytest.fixture
def source(weights):
    return convert.Checkpoint(weights, CONFIG, "ema_0.9999", 700, ())


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command in this process: function of its arguments, returns (exit code, stdout, stderr)."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint", *map(str, arguments)])
        capsys.readouterr()
        try:
            runpy.run_path(str(ROOT / "scripts" / "convert_checkpoint.py"), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return (code, *capsys.readouterr())
    return run


def assert_bitwise(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def in_order(arrays):
    return dict(sorted(arrays.items()))


def without_counters(weights):
    return {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}


def zipped(entries, compression=zipfile.ZIP_STORED):
    """The bytes of an archive of name -> content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unzipped(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


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
        pt, safetensors = tmp_path / "emasavedmodel_0.9999_000700.pt", tmp_path / "x.safetensors"
        pt.write_bytes(write_pt(weights))
        found = convert.read(pt, GIVEN)
        assert (found.network, found.step) == ("ema_0.9999", 700)
        convert.write(safetensors, found)
        assert checkpoint.find(safetensors) == safetensors
        model, _, loaded = backend.module("script_util").load_model_and_diffusion(safetensors)
        assert loaded.model == CONFIG.model
        assert_bitwise(in_order(backend.module("runtime").state_arrays(model)), in_order(weights))


@needs_pytorch
class TestPyTorch:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_its_files_are_read_bitwise(self, weights, zipped):
        import torch
        state = OrderedDict((name, torch.from_numpy(value.copy())) for name, value in weights.items())
        state["out.0.bias"] = torch.nn.Parameter(state["out.0.bias"])  # as in the moving averages of the original
        state._metadata = {"": {"version": 1}}
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        assert_bitwise(read_pt(buffer.getvalue(), "x.pt"), weights)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_views_strides_and_types(self, zipped):
        import torch
        base = torch.arange(24.).reshape(2, 3, 4)
        state = {"base": base, "row": base[1, 1:], "transposed": base.permute(2, 0, 1), "every": base.view(-1)[1::5],
                 "empty": torch.zeros(0, 3), "scalar": torch.tensor(7)}
        state |= {str(dtype): torch.tensor([[0, 1], [1, 0]]).to(dtype) for dtype in (
            torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)}
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        assert_bitwise(read_pt(buffer.getvalue(), "x.pt"), {name: value.numpy() for name, value in state.items()})

    @pytest.mark.parametrize("shape", [(), (2, 5)])
    def test_bfloat16_is_widened_exactly(self, shape):
        import torch
        value = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e30).to(torch.bfloat16)
        buffer = io.BytesIO()
        torch.save({"x": value}, buffer)
        assert_bitwise(read_pt(buffer.getvalue(), "x.pt"), {"x": value.float().numpy()})

    def test_it_reads_what_is_written(self, tmp_path, weights):
        import torch
        path = tmp_path / "x.pt"
        path.write_bytes(write_pt({**weights, "double": np.arange(6.).reshape(2, 3)[:, ::2]}))
        loaded = torch.load(path, weights_only=True)
        assert type(loaded) is OrderedDict
        assert np.array_equal(loaded.pop("double"), [[0, 2], [3, 5]])
        assert_bitwise({name: value.numpy() for name, value in loaded.items()}, weights)

    def test_its_network_loads_what_is_written(self, tmp_path, weights):
        import torch

        from guided_diffusion_pt.script_util import create_model
        (tmp_path / "x.pt").write_bytes(write_pt(weights))
        state = torch.load(tmp_path / "x.pt", weights_only=True)
        create_model(**vars(CONFIG.model)).load_state_dict(state, strict=True)


@needs_jittor
class TestJittor:
    def test_its_files_are_read_bitwise(self, tmp_path, weights):
        from guided_diffusion_jt.runtime import jt
        plain = without_counters(weights)
        for values in ({name: jt.array(value) for name, value in plain.items()}, plain):
            jt.save(values, str(tmp_path / "x.pkl"))
            assert_bitwise(read_pkl((tmp_path / "x.pkl").read_bytes(), "x.pkl"), plain)

    def test_a_state_dict_of_its_network(self, tmp_path, weights):
        from guided_diffusion_jt import runtime, script_util
        model = script_util.create_model(**vars(CONFIG.model))
        runtime.load_state(model, weights)
        runtime.jt.save(model.state_dict(), str(tmp_path / "x.pkl"))
        assert_bitwise(convert.read(tmp_path / "x.pkl", GIVEN).arrays, weights)

    @pytest.mark.parametrize("ending, written", [(".pkl", write_pkl), (".pt", write_pt)])
    def test_it_reads_what_is_written(self, tmp_path, weights, ending, written):
        from guided_diffusion_jt.runtime import jt
        path = tmp_path / f"x{ending}"
        path.write_bytes(written(weights))
        loaded = {name: np.asarray(value) for name, value in jt.load(str(path)).items()}
        assert_bitwise(without_counters(loaded), without_counters(weights))
        assert all(name in loaded for name in weights)

    def test_its_network_loads_what_is_written(self, tmp_path, weights):
        from guided_diffusion_jt import runtime, script_util
        (tmp_path / "x.pkl").write_bytes(write_pkl(weights))
        model = script_util.create_model(**vars(CONFIG.model))
        model.load(str(tmp_path / "x.pkl"))
        assert_bitwise(in_order(runtime.state_arrays(model)), in_order(weights))


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
        """XD-XXF/MedSegDiff-Jittor: these names, no counters, always one output channel."""
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
        path.write_bytes(written(arrays) if written else checkpoint.to_bytes(0, CONFIG, "model", arrays))
        with pytest.raises(UserError) as error:
            convert.read(path, GIVEN if written else {})
        for text in (path.name, "2 missing: input_blocks.0.0.weight, out.2.bias", "1 unexpected: extra.weight",
                     "1 of another shape: time_embed.0.bias (3,) instead of (128,)"):
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
        assert any("1 tensors are widened" in note for note in found.notes)


class TestConfiguration:
    @pytest.mark.parametrize("path", sorted((ROOT / "parity" / "golden").glob("keys_new_*.json")),
                             ids=lambda path: path.stem)
    def test_of_the_originals_networks(self, path):
        recorded = json.loads(path.read_text())
        shapes = {name: tuple(shape) for name, shape in dict(recorded["state_dict"]).items()}
        found, assumed = infer(shapes, {}, path.name)
        for name in (*VISIBLE, "image_size"):
            assert getattr(found.model, name) == {"mask_channels": 1, **recorded["config"]}[name], name
        assert "num_heads" in assumed and "image_size" in assumed and "num_channels" not in assumed

    @pytest.mark.parametrize("settings", [
        {"channel_mult": "1"}, {"channel_mult": "2,1,1", "num_res_blocks": 3}, {"attention_resolutions": ""},
        {"channel_mult": "1,2,2", "attention_resolutions": "32,8", "resblock_updown": True},
        {"use_scale_shift_norm": True, "class_cond": True, "learn_sigma": False, "in_ch": 2, "num_channels": 64},
        {"mask_channels": 2, "in_ch": 5, "learn_sigma": False}, {"mask_channels": 3, "in_ch": 7, "version": "1"}])
    def test_every_setting_that_shapes_show(self, settings):
        settings = {**NETWORK, "attention_resolutions": "32", **settings}
        model = config.resolve(settings).model
        found, _ = infer(state_shapes(make_plan(model)), {"image_size": 32, "num_heads": 2}, "x")
        assert found.model == model

    @pytest.mark.parametrize("given, text", [
        ({"num_channels": 64}, "--num_channels: found '?64'?; expected '?32"),
        ({"attention_resolutions": "8"}, "--attention_resolutions.*8.*16"),
        ({"channel_mult": "1,3"}, "--channel_mult.*1,3.*1,2"), ({"learn_sigma": False}, "--learn_sigma")])
    @pytest.mark.parametrize("ending", [".pt", ".safetensors"])
    def test_a_contradicting_flag_is_refused(self, tmp_path, source, given, text, ending):
        convert.write(tmp_path / f"x{ending}", source)
        with pytest.raises(UserError, match=text):
            convert.read(tmp_path / f"x{ending}", {**GIVEN, **given})

    def test_version_1_without_the_layer_that_the_original_draws_at_random(self, tmp_path, capsys):
        model = dataclasses.replace(CONFIG.model, version="1", channel_mult="1,1,2,2")
        state = initial_state(state_shapes(make_plan(model)), seed=2)
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

    def test_the_printed_flags_bring_the_configuration_back(self, tmp_path, source, command):
        convert.write(tmp_path / "a.safetensors", source)
        code, printed, _ = command(tmp_path / "a.safetensors", tmp_path / "b.pkl")
        assert code == 0
        flags = printed.splitlines()[-1].partition("in it: ")[2]
        line = f"{sys.executable} scripts/convert_checkpoint.py {tmp_path}/b.pkl {tmp_path}/c.safetensors {flags}"
        subprocess.run(line, shell=True, check=True, cwd=ROOT)
        assert checkpoint.read_config(tmp_path / "c.safetensors").model == CONFIG.model


class Payload:
    """An object whose pickle makes a file when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


def hostile_pickles(path):
    """Name -> pickle that makes the file `path` when plain pickle reads it."""
    payload, system = Payload(path), f"touch {path}".encode()
    named = b"c__builtin__\n%s\n"
    return {
        **{f"protocol {number}": pickle.dumps(payload, number) for number in (0, 2, 4)},
        "beside weights": pickle.dumps({"out.0.bias": np.zeros(2, np.float32), "x": payload}, 4),
        "as a name": pickle.dumps({payload: 1}, 2),
        "opcode INST": b"(S'" + system + b"'\nios\nsystem\n.",
        "opcode OBJ": b"(cos\nsystem\nS'" + system + b"'\no.",
        "function of an allowed module": b"c_codecs\nlookup_error\n(S'strict'\ntR0" + pickle.dumps(payload, 0),
        "attribute of an allowed name": pickle.PROTO + b"\x04\x8c\x07_codecs\x8c\x0fencode.__self__\x93"
                                        + pickle.dumps(payload, 4)[2:],
        "state": b"ccollections\nOrderedDict\n(tR(dS'x'\n" + pickle.dumps(payload, 0)[:-1] + b"sb.",
        "built-in": named % b"exec" + b"(S'open(" + repr(str(path)).replace("'", '"').encode() + b", \"w\")'\ntR.",
    }


def hostile_files(content):
    """(ending, bytes) of every file in which a pickle may stand."""
    yield ".pkl", content
    yield ".pkl", content + hashlib.sha1(content).digest() + b"HCAJSLHD"
    yield ".pt", zipped({"archive/data.pkl": content})
    legacy = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])]
    for index in range(len(legacy)):
        yield ".pth", b"".join(legacy[:index]) + content + b"".join(legacy[index + 1:])
    yield ".safetensors", content
    yield ".safetensors", len(content).to_bytes(8, "little") + content


class TestHostileFiles:
    @pytest.mark.parametrize("name", hostile_pickles("x"))
    def test_nothing_is_executed(self, tmp_path, name, command):
        made = tmp_path / "made"
        content = hostile_pickles(made)[name]
        try:
            pickle.loads(content)
        except Exception:  # some end in an error after they have made the file
            pass
        assert made.exists(), "the test's own payload does not work"
        made.unlink()
        for ending, file in hostile_files(content):
            path = tmp_path / f"x{ending}"
            path.write_bytes(file)
            with pytest.raises(UserError, match=f"x{ending}"):
                convert.read(path)
            assert not made.exists(), ending
        code, _, errors = command(path, tmp_path / "out.pkl")
        assert code == 2 and "Traceback" not in errors and not (tmp_path / "out.pkl").exists()

    @pytest.mark.parametrize("read, names", [
        (read_pkl, ("numpy ndarray", "numpy dtype", "_codecs encode", "jittor Var")),
        (read_pt, ("torch FloatStorage", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"))])
    @pytest.mark.parametrize("state", [b"(dS'x'\nI1\ns", b"(N(dS'__defaults__'\n(I1\ntst"])
    def test_no_name_takes_state(self, read, names, state):
        for name in names:
            content = b"c" + name.replace(" ", "\n").encode() + b"\n" + state + b"b."
            if read is read_pt:
                content = zipped({"archive/data.pkl": content})
            with pytest.raises(UserError, match="asks for more than weights: state for"):
                read(content, "x")

    @pytest.mark.parametrize("read", [read_pkl, lambda content, where: read_pt(
        zipped({"archive/data.pkl": content}), where)])
    def test_a_pickle_that_needs_gigabytes_is_refused(self, read):
        with pytest.raises(UserError, match="billions"):
            read(b"\x80\x02}r\xff\xff\xff\x7f.", "x")

    def test_any_changed_byte_ends_in_a_clear_error_or_in_arrays(self):
        """The pickles themselves, without the checksums around them."""
        rs = np.random.RandomState(0)
        arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7)}
        entries = unzipped(write_pt(arrays))
        for original, read in ((pickle.dumps(arrays, 2), read_pkl), (pickle.dumps(arrays, 4), read_pkl),
                               (entries["archive/data.pkl"], lambda content, where: read_pt(
                                   zipped({**entries, "archive/data.pkl": content}), where))):
            refused = 0
            for _ in range(300):
                content = bytearray(original)
                content[rs.randint(len(content))] = rs.randint(256)
                try:
                    assert all(type(value) is np.ndarray for value in read(bytes(content), "x").values())
                except UserError:
                    refused += 1
            assert refused > 100

    @pytest.mark.parametrize("offset, size, stride", [
        (0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (4, 1)), (0, (2,), (-1,)), (-1, (2,), (1,)), (0, (8,), (0,)),
        (0, (2**40, 2**40), (0, 0)), (0, (2.0,), (1,)), (2**70, (1,), (1,)), (0, (4,), ())])
    def test_a_tensor_outside_its_storage_is_refused(self, offset, size, stride):
        good = write_pt({"x": np.arange(4, dtype=np.float32)})
        assert read_pt(good, "x.pt")["x"].tolist() == [0, 1, 2, 3]
        entries = unzipped(good)
        before, after = (pickle.dumps(values, 2)[2:-1] for values in ((4,), (1,)))
        window = pickle.dumps(0, 2)[2:-1] + before + after
        assert window in entries["archive/data.pkl"]
        entries["archive/data.pkl"] = entries["archive/data.pkl"].replace(
            window, b"".join(pickle.dumps(value, 2)[2:-1] for value in (offset, size, stride)))
        with pytest.raises(UserError, match="x.pt"):
            read_pt(zipped(entries), "x.pt")

    @pytest.mark.parametrize("ending", FORMATS)
    @pytest.mark.parametrize("part", [0, 4, 0.5, 0.99, -1])
    def test_a_cut_file_is_refused(self, tmp_path, source, ending, part):
        path = tmp_path / f"x{ending}"
        convert.write(path, source)
        content = path.read_bytes()
        path.write_bytes(content[:part if isinstance(part, int) else int(part * len(content))])
        with pytest.raises(UserError, match=f"x{ending}"):
            convert.read(path, GIVEN)

    @pytest.mark.parametrize("ending", (".pt", ".pkl"))
    def test_a_changed_bit_is_found(self, tmp_path, source, ending):
        """By the checksums that both formats carry."""
        path = tmp_path / f"x{ending}"
        convert.write(path, source)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"x{ending}"):
            convert.read(path, GIVEN)

    def test_a_compressed_archive_is_refused(self):
        with pytest.raises(UserError, match="compressed"):
            read_pt(zipped(unzipped(write_pt({"x": np.zeros(9)})), zipfile.ZIP_DEFLATED), "x.pt")

    @pytest.mark.parametrize("state", [{"state": {}, "param_groups": [{"lr": 1e-4}]}, {"defaults": {"lr": 1e-4}}])
    def test_an_optimizers_state_is_named(self, state):
        with pytest.raises(UserError, match="optimizer.*emasavedmodel"):
            read_pkl(pickle.dumps(state, 4), "optsavedmodel000010.pkl")

    def test_entries_that_are_no_arrays_are_named(self):
        with pytest.raises(UserError, match="no arrays: epoch"):
            read_pkl(pickle.dumps({"x": np.zeros(2), "epoch": 3}, 4), "x.pkl")

    def test_an_array_of_objects_is_refused(self):
        with pytest.raises(UserError, match="O8"):
            read_pkl(pickle.dumps({"x": np.array([1, "a"], object)}, 4), "x.pkl")


class TestNumpyPickles:
    @pytest.mark.parametrize("protocol", [2, 3, 4])
    def test_orders_and_types(self, protocol):
        arrays = {"fortran": np.asfortranarray(np.arange(6.).reshape(2, 3)), "big": np.arange(3, dtype=">f4"),
                  "scalar": np.array(7), "half": np.ones(2, np.float16), "flags": np.array([True, False])}
        expected = {name: value.astype(value.dtype.newbyteorder("="), order="C") for name, value in arrays.items()}
        assert_bitwise(read_pkl(pickle.dumps(arrays, protocol), "x.pkl"), expected)


CONVERT_WITHOUT = """
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
for source, target in {pairs!r}:
    sys.argv = ["convert_checkpoint", source, target, *{flags!r}]
    try:
        runpy.run_path("scripts/convert_checkpoint.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code
print("loaded", sorted({blocked!r} & sys.modules.keys()))
"""


class TestCommand:
    def test_needs_no_framework(self, tmp_path, source):
        paths = [str(tmp_path / name) for name in ("a.pt", "b.safetensors", "c.pkl", "d.pt")]
        convert.write(paths[0], source)
        code = CONVERT_WITHOUT.format(blocked={"torch", "jittor", "jittor_utils"},
                                      pairs=list(zip(paths, paths[1:])), flags=FLAGS)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "loaded []"
        assert pathlib.Path(paths[3]).read_bytes() == pathlib.Path(paths[0]).read_bytes()

    def test_says_what_it_assumes(self, tmp_path, source, command):
        convert.write(tmp_path / "a.pt", source)
        code, printed, _ = command(tmp_path / "a.pt", tmp_path / "b.safetensors", "--image_size", 32,
                                   "--num_heads", 2)
        assert code == 0
        seen, assumed = (line for line in printed.splitlines() if line.startswith(("From", "Not")))
        assert "num_channels 32" in seen and "num_heads 2" in seen
        assert "num_heads " not in assumed and "diffusion_steps 1000" in assumed and "RGB / 255" in assumed

    def test_dry_run_writes_nothing(self, tmp_path, source, command):
        convert.write(tmp_path / "a.pt", source)
        code, printed, _ = command(tmp_path / "a.pt", tmp_path / "b.pkl", *FLAGS, "--dry_run")
        assert code == 0 and "Nothing written" in printed and "num_channels 32" in printed
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    def test_an_existing_file_stays(self, tmp_path, source, command):
        convert.write(tmp_path / "a.pt", source)
        (tmp_path / "b.pkl").write_bytes(b"mine")
        code, _, errors = command(tmp_path / "a.pt", tmp_path / "b.pkl", *FLAGS)
        assert code == 2 and "b.pkl: found a file that is there already" in errors
        assert (tmp_path / "b.pkl").read_bytes() == b"mine"

    @pytest.mark.parametrize("names, text", [
        (("a.pt", "b.onnx"), "OUT"), (("a.bin", "b.pt"), "IN"), (("a.pt", "b"), "OUT"),
        (("no.pt", "b.pkl"), "no.pt"), (("a.pt", "no/such/folder/b.pkl"), "folder")])
    def test_bad_paths_are_refused(self, tmp_path, source, command, names, text):
        convert.write(tmp_path / "a.pt", source)
        (tmp_path / "a.bin").write_bytes(b"")
        code, _, errors = command(*(tmp_path / name for name in names), *FLAGS)
        assert code == 2 and text in errors and "Traceback" not in errors

    def test_sampling_names_the_command(self, tmp_path, source):
        convert.write(tmp_path / "a.pt", source)
        with pytest.raises(UserError, match="convert_checkpoint.py .*a.pt .*a.safetensors"):
            checkpoint.find(tmp_path / "a.pt")


@pytest.mark.skipif(set(BACKENDS) != {"pytorch", "jittor"}, reason="compares both backends")
class TestVerify:
    def test_both_backends_agree(self, tmp_path, source, command):
        convert.write(tmp_path / "a.pt", source)
        code, printed, errors = command(tmp_path / "a.pt", tmp_path / "b.pkl", *FLAGS, "--verify")
        assert code == 0, errors
        lines = [line for line in printed.splitlines() if line.startswith("--verify")]
        assert f"{len(source.arrays)} of {len(source.arrays)} tensors" in lines[0]
        assert all("largest difference 0" in line for line in lines[1:3])
        difference, scale = (float(text.rstrip(")")) for text in lines[3].split() if text[0].isdigit())
        # sums in another order: measured 1.5e-6 of the largest output
        assert 0 < difference < 1e-5 * scale

    def test_backends_that_disagree_are_an_error(self, tmp_path, source, command, monkeypatch):
        monkeypatch.setattr(verify, "BACKENDS_AGREE", 0.0)
        convert.write(tmp_path / "a.pt", source)
        assert command(tmp_path / "a.pt", tmp_path / "b.safetensors", *FLAGS, "--verify")[0] == 1

    def test_a_wrong_file_is_found(self, tmp_path, source, command, monkeypatch):
        convert.write(tmp_path / "a.pt", source)
        write = convert.write

        def spoil(path, found):
            write(path, convert.Checkpoint({**found.arrays, "out.2.bias": found.arrays["out.2.bias"] + 1},
                                           found.config, found.network, found.step, ()))

        monkeypatch.setattr(convert, "write", spoil)
        code, printed, _ = command(tmp_path / "a.pt", tmp_path / "b.pkl", *FLAGS, "--verify")
        assert code == 1 and f"{len(source.arrays) - 1} of {len(source.arrays)} tensors" in printed
        assert "pytorch, IN against OUT: largest difference 1" in printed

"""Test converted checkpoints with the frameworks as oracles, which write and read the files."""

import io
from collections import OrderedDict

import numpy as np
import pytest
from support.conversions import CONFIG, GIVEN, assert_bitwise, in_order, needs_jittor, needs_pytorch, without_counters

from guided_diffusion_core.conversion import convert
from guided_diffusion_core.conversion.jittor_files import read_pkl, write_pkl
from guided_diffusion_core.conversion.torch_files import read_pt, write_pt


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

        base = torch.arange(24.0).reshape(2, 3, 4)
        state = {
            "base": base,
            "row": base[1, 1:],
            "transposed": base.permute(2, 0, 1),
            "every": base.view(-1)[1::5],
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(7),
        }
        state |= {
            str(dtype): torch.tensor([[0, 1], [1, 0]]).to(dtype)
            for dtype in (
                torch.float64,
                torch.float16,
                torch.int64,
                torch.int32,
                torch.int16,
                torch.int8,
                torch.uint8,
                torch.bool,
            )
        }
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
        path.write_bytes(write_pt({**weights, "double": np.arange(6.0).reshape(2, 3)[:, ::2]}))
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

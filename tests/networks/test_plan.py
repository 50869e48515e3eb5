"""The plan of the network, the names and shapes that follow from it, and the initial weights."""

import math

import numpy as np
import pytest

from guided_diffusion_core.config import ModelConfig
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.medsegdiff.initialization import initial_value
from guided_diffusion_core.networks.medsegdiff.plan import (
    AttentionPlan,
    DownsamplePlan,
    JoinPlan,
    default_channel_mult,
    make_plan,
)
from guided_diffusion_core.networks.medsegdiff.state_shapes import state_shapes
from guided_diffusion_core.networks.state import is_buffer, moved_by_one_ulp
from guided_diffusion_core.noise import NoiseTape

SMALL = {"image_size": 32, "num_channels": 32, "num_heads": 1, "attention_resolutions": "16"}


def anchor_channels(plan):
    """Return the channels of the two anchors: the decoder's features at half and at quarter resolution."""
    half = plan.highway.localization[-2]
    quarter = plan.highway.localization[-3]
    return half[-1][1], quarter[-1][1]


@pytest.mark.parametrize("width", range(32, 2049, 32))
def test_anchors_of_every_width_add_up_to_it(width):
    plan = make_plan(ModelConfig(**{**SMALL, "num_channels": width}))
    half, quarter = anchor_channels(plan)
    assert 2 * half + quarter == plan.model_channels == width


@pytest.mark.parametrize("size", range(32, 1025, 32))
def test_every_image_size_has_a_whole_resolution_at_each_level(size):
    levels = len(default_channel_mult(size))
    assert size % 2 ** (levels - 1) == 0
    coarsest = size // 2 ** (levels - 1)
    plan = make_plan(ModelConfig(**{**SMALL, "image_size": size, "attention_resolutions": str(coarsest)}))
    assert sum(isinstance(layer, AttentionPlan) for block in plan.input_blocks for layer in block) == 2


@pytest.mark.parametrize("width", [32, 96, 512])
@pytest.mark.parametrize("size", range(32, 1025, 32))
def test_both_networks_of_version_1_meet_at_the_same_resolutions_and_widths(size, width):
    coarsest = size // 2 ** (len(default_channel_mult(size)) - 1)
    plan = make_plan(
        ModelConfig(
            **{
                **SMALL,
                "image_size": size,
                "num_channels": width,
                "version": "1",
                "attention_resolutions": str(coarsest),
            }
        )
    )
    highway = plan.highway
    halvings = 0
    joins = []
    for index, block in enumerate(plan.input_blocks):
        if isinstance(block[0], DownsamplePlan):
            halvings += 1
            joins.append(JoinPlan(index, block[0].channels, highway.context[halvings - 1][-1][1], size // 2**halvings))
    assert size // 2**highway.poolings == coarsest and list(highway.joins) == joins[:-1]
    assert highway.embed == (highway.context[-1][-1][1], plan.middle_block[0].channels)
    assert highway.anchor_scales == ()


@pytest.mark.parametrize("version", ["new", "1"])
def test_every_skip_is_joined_once(version):
    plan = make_plan(ModelConfig(**SMALL, version=version))
    skips = [plan.input_blocks[0][0].out_channels]
    for block in plan.input_blocks[1:]:
        skips.append(getattr(block[0], "out_channels", block[0].channels))
    width = plan.middle_block[-1].out_channels
    for block in plan.output_blocks:
        assert block[0].channels == width + skips.pop()
        width = block[0].out_channels
    assert skips == []


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"image_size": 50}, "--image_size: found 50"),
        ({"num_channels": 48}, "--num_channels: found 48"),
        ({"attention_resolutions": "24"}, "expected resolutions of this network: 32, 16, 8, 4"),
        ({"attention_resolutions": "16;8"}, "--attention_resolutions"),
        ({"channel_mult": "1,x"}, "--channel_mult"),
        ({"channel_mult": "1,1,1,1,1,1,1"}, "--channel_mult: found 7 multipliers"),
        ({"num_heads": 3}, "--num_heads: found 3"),
        ({"num_head_channels": 24}, "--num_head_channels: found 24"),
        ({"num_res_blocks": 0}, "--num_res_blocks: found 0"),
        ({"in_ch": 1}, "--in_ch: found 1"),
        ({"in_ch": 3, "mask_channels": 3}, "--in_ch: found 3; expected at least one image channel and the 3"),
        ({"mask_channels": 0}, "--mask_channels: found 0"),
        (
            {"version": "1", "channel_mult": "2", "attention_resolutions": "32"},
            "--channel_mult: found '2' with --version 1",
        ),
    ],
)
def test_settings_that_make_no_network_are_refused(settings, named):
    with pytest.raises(UserError) as error:
        make_plan(ModelConfig(**{**SMALL, **settings}))
    assert named in str(error.value)


def test_learn_sigma_decides_the_output_channels():
    for learn_sigma, channels in ((False, 1), (True, 2)):
        shapes = state_shapes(make_plan(ModelConfig(**SMALL, learn_sigma=learn_sigma)))
        assert shapes["out.2.weight"][0] == channels


@pytest.fixture(scope="module", params=["new", "1"])
def shapes(request):
    return state_shapes(make_plan(ModelConfig(**{**SMALL, "num_channels": 64}, version=request.param)))


def initial_state(shapes, seed):
    tape = NoiseTape(seed)
    return {name: initial_value(name, shapes, tape) for name in shapes}


def test_initial_weights_follow_their_distributions(shapes):
    state = initial_state(shapes, seed=1)
    assert {name: value.shape for name, value in state.items()} == shapes
    for name, value in state.items():
        layer, kind = name.rsplit(".", 1)
        if layer == "out.2" or layer.endswith(("out_layers.3", "proj_out")):
            assert not value.any(), name
        elif "instnorm" in name or layer.endswith((".norm", "layers.0")) or layer == "out.0":
            assert (value == (kind in ("weight", "running_var"))).all(), name
        elif kind == "complex_weight":
            assert abs(value.std() / 0.02 - 1) < 5 / math.sqrt(value.size), name
        elif layer.startswith("hwm.") and layer != "hwm.bottleneck_embed":
            if kind == "bias":
                assert not value.any(), name
            else:
                expected = math.sqrt(2 / (1 + 0.01**2) / math.prod(value.shape[1:]))
                assert abs(value.std() / expected - 1) < 5 / math.sqrt(value.size), name
        else:
            bound = 1 / math.sqrt(math.prod(shapes[f"{layer}.weight"][1:]))
            assert np.abs(value).max() <= bound, name
            assert abs(value.std() / (bound / math.sqrt(3)) - 1) < 5 / math.sqrt(value.size), name


def test_initial_weights_depend_on_seed_and_name_alone(shapes):
    state = initial_state(shapes, seed=1)
    alone = initial_state({"time_embed.0.weight": shapes["time_embed.0.weight"]}, seed=1)
    assert np.array_equal(alone["time_embed.0.weight"], state["time_embed.0.weight"])
    other = initial_state(shapes, seed=2)
    assert not np.array_equal(other["time_embed.0.weight"], state["time_embed.0.weight"])
    first = state["middle_block.0.in_layers.2.weight"]
    second = state["middle_block.2.in_layers.2.weight"]
    assert first.shape == second.shape and not np.array_equal(first, second)


def test_moving_by_one_ulp_moves_every_value_but_zeros_and_counters(shapes):
    state = initial_state(shapes, seed=1)
    for name, moved in moved_by_one_ulp(state).items():
        value = state[name]
        assert moved.dtype == value.dtype
        if value.dtype == np.float32:
            steps = moved.view(np.int32).astype(np.int64) - value.view(np.int32)
            assert (np.abs(steps) == (value != 0)).all(), name
        else:
            assert (moved == value).all() and is_buffer(name)

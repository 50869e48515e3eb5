"""The paper's network: initial values, refused settings, patches, what depends on the image alone."""

import numpy as np
import pytest

from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.paper.settings import PaperConfig
from guided_diffusion_core.networks.registry import initial_state, make_plan, state_shapes

SMALL = {"image_size": 16, "in_ch": 4, "dim": 8, "dim_mults": "1,2", "heads": 2, "dim_head": 4, "ff_parser": "dynamic"}
SMALL |= {"skip_conditions": True, "self_condition": True, "vit_heads": 2, "vit_dim_head": 4, "vit_depth": 1}


def test_the_towers_start_alike_and_the_dynamic_map_at_the_static_one():
    state = initial_state(PaperConfig(**SMALL), seed=3)
    copies = [name for name in state if name.startswith(("cond_downs.", "cond_mid_block1."))]
    assert len(copies) == len([name for name in state if name.startswith(("downs.", "mid_block1."))])
    for name in copies:
        np.testing.assert_array_equal(state[name], state[name.removeprefix("cond_")])
    assert not np.array_equal(state["downs.0.0.block1.proj.weight"], state["downs.0.1.block1.proj.weight"])
    for name, values in state.items():
        if name.endswith((".g", "ff_parser_attn_map")):
            assert (values == 1).all(), name
        if name.endswith((".b", "pos_emb")) or "to_patches.1" in name:
            assert (values == 0).all(), name


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"dim": 12}, "--paper.dim: found 12; expected a multiple of 8"),
        ({"dim": 24, "groups": 16}, "a multiple of 16 .--paper.groups"),
        ({"dim_mults": "1,x"}, "--paper.dim_mults: found '1,x'; expected whole numbers from 1 on"),
        ({"dim_mults": "1,0"}, "--paper.dim_mults: found '1,0'"),
        ({"full_attention": "2"}, "--paper.full_attention: found 2; expected levels from 0 to 1"),
        ({"full_attention": "first"}, "--paper.full_attention: found 'first'"),
        ({"image_size": 15}, "--image_size: found 15; expected a multiple of 2"),
        (
            {"vit_patch": 3},
            "--paper.vit_patch: found 3; expected a divisor of the levels' sides 16, 8, such as 1, 2, 4, 8",
        ),
        ({"learn_sigma": True}, "--learn_sigma: found True"),
    ],
)
def test_settings_that_make_no_network_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        make_plan(PaperConfig(**{**SMALL, **changed}))


@pytest.mark.parametrize(
    "size, patches", [(64, [2, 2, 2, 2]), (72, [3, 2, 2, 3]), (128, [4, 2, 2, 2]), (256, [8, 4, 2, 2])]
)
def test_patches_keep_the_tokens_of_a_level_below_their_limit(size, patches):
    settings = PaperConfig(image_size=size, ff_parser="dynamic")
    assert [settings.patch(level) for level in range(4)] == patches
    make_plan(settings)
    assert all((side // patch) ** 2 <= 1024 for side, patch in zip(settings.sizes, patches))


@pytest.mark.parametrize("kind", [{"ff_parser": "none"}, {"conditioning": "static"}, {"ff_parser": "static"}])
def test_only_parameters_that_are_used_exist(backend, kind):
    settings = PaperConfig(**{**SMALL, **kind})
    runtime = backend.module("runtime")
    model = backend.module("build").build_network(settings, initial_state(settings, seed=0))
    x = runtime.to_tensor(np.random.default_rng(0).standard_normal((2, 4, 16, 16)), dtype="float32")
    out = model(x, runtime.to_tensor(np.array([3, 700])))
    named = list(model.named_parameters())
    assert {name for name, _ in named} == set(state_shapes(settings))
    gradients = backend.module("optim").gradients((out * out).mean(), [value for _, value in named])
    for (name, _), gradient in zip(named, gradients):
        assert np.abs(runtime.to_numpy(gradient)).max() > 0 or name.endswith(("to_qkv.weight", ".bias")), name


def test_features_of_the_image_alone_can_be_given(backend):
    settings = PaperConfig(**SMALL)
    runtime = backend.module("runtime")
    model = backend.module("build").build_network(settings, initial_state(settings, seed=0))
    model.eval()
    x = runtime.to_tensor(np.random.default_rng(0).standard_normal((1, 4, 16, 16)), dtype="float32")
    t = runtime.to_tensor(np.array([5]))
    with runtime.no_grad():
        known = model.condition(x[:, :-1])
        np.testing.assert_array_equal(runtime.to_numpy(model(x, t, conditioning=known)), runtime.to_numpy(model(x, t)))

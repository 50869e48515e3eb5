"""Both backends in float64 on a small network: the same outputs and gradients, whatever its flags.

float64 leaves no room for rounding to hide a difference: two right implementations agree here to
about 1e-12, and a wrong one cannot come near 1e-9.
"""

import numpy as np
import pytest
from support.backends import BACKENDS, Backend
from support.small import NETWORK, NETWORK_V1, computing, random_state

from guided_diffusion_core.config import ModelConfig
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.medsegdiff.plan import make_plan
from guided_diffusion_core.networks.medsegdiff.state_shapes import state_shapes
from guided_diffusion_core.networks.registry import initial_state
from guided_diffusion_core.networks.state import is_buffer
from guided_diffusion_core.noise import NoiseTape

FORWARD_TOLERANCE = 1e-9  # of a tensor's largest value
GRADIENT_TOLERANCE = 1e-7
FLAGS_TURNED = {
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "use_new_attention_order": True,
    "num_head_channels": 16,
    "in_ch": 2,
    "learn_sigma": False,
    "use_checkpoint": True,
    "dropout": 0.0,
    "num_res_blocks": 2,
}
VARIANTS = {
    "plain": {},
    "all-flags-turned": FLAGS_TURNED,
    "version-1": NETWORK_V1,
    "three-labels": {"mask_channels": 3, "in_ch": 6},
    "version-1-three-labels": {**NETWORK_V1, "mask_channels": 3, "in_ch": 6, "learn_sigma": False},
    "version-1-all-flags-turned": {**NETWORK_V1, **FLAGS_TURNED, "channel_mult": "1,1,2"},
}
both = pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")


def plan_of(settings):
    return make_plan(ModelConfig(**{**NETWORK, "dropout": 0.1, **settings}))


def inputs(plan, batch=2):
    """Return network input, time steps and the weights of the loss, numpy arrays."""
    generator = np.random.default_rng(1)
    shape = (batch, plan.in_channels, plan.image_size, plan.image_size)
    target = generator.standard_normal((batch, plan.out_channels + plan.mask_channels, *shape[2:]))
    return generator.standard_normal(shape), np.array([3, 700]), target


def record_types(model, types):
    """Collect in `types` (name -> set) the types of every layer's outputs."""

    def hook_of(name):
        def hook(module, given, output):
            values = output if isinstance(output, (tuple, list)) else [output]
            types.setdefault(name, set()).update(
                str(value.dtype).removeprefix("torch.") for value in values if hasattr(value, "dtype")
            )

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(hook_of(name))


def run(backend, plan):
    """Run one training pass and return out and cal, the gradients by name, and the layers' types."""
    runtime = backend.module("runtime")
    model = backend.module("unet").make_network(plan)
    runtime.load_state(model, random_state(state_shapes(plan)))
    model.train()
    backend.module("nn").set_dropout_noise(model, NoiseTape(2), 0, (0, 1))
    types = {}
    record_types(model, types)
    x, t, target = inputs(plan)
    out, cal = model(runtime.to_tensor(x), runtime.to_tensor(t))
    weights = runtime.to_tensor(target)
    masks = plan.mask_channels
    loss = (out * weights[:, :-masks]).sum() + (cal * weights[:, -masks:]).sum()
    named = [(name, param) for name, param in model.named_parameters() if not is_buffer(name)]
    found = backend.module("optim").gradients(loss, [param for _, param in named])
    gradients = {name: runtime.to_numpy(gradient) for (name, _), gradient in zip(named, found)}
    return runtime.to_numpy(out), runtime.to_numpy(cal), gradients, types


def largest(value):
    return np.abs(value).max()


def can_cancel(name):
    """Return True if the exact gradient of a parameter may be zero.

    A norm removes a number that was added to a whole channel (batch norm) or group (group norm, whose groups
    have one channel at width 32). Such numbers are the biases before it and the shift of the time embedding.
    """
    return name.endswith(".bias") or ".emb_layers." in name or name.startswith("time_embed.")


@both
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_gradients(variant):
    plan = plan_of(VARIANTS[variant])
    backends = [Backend(name) for name in BACKENDS]
    with computing("float64", *backends):
        (out, cal, gradients, types), (other_out, other_cal, other_gradients, other_types) = (
            run(backend, plan) for backend in backends
        )
    for layers in (types, other_types):
        assert len(layers) > 80 and set().union(*layers.values()) == {"float64"}
    for first, second in ((out, other_out), (cal, other_cal)):
        assert first.dtype == second.dtype == np.float64 and largest(first) > 0.1
        assert largest(first - second) <= FORWARD_TOLERANCE * largest(first)
    assert gradients.keys() == other_gradients.keys() == {n for n in state_shapes(plan) if not is_buffer(n)}
    compare_gradients(gradients, other_gradients)


def compare_gradients(gradients, others):
    """Gradients agree on their own scale; exact zeros agree on the scale of the largest gradient."""
    scale = max(map(largest, gradients.values()))
    for name, gradient in gradients.items():
        zero = largest(gradient) <= 1e-13 * scale
        assert can_cancel(name) or not zero, f"{name} gets no gradient"
        own = scale if zero else largest(gradient)
        assert largest(gradient - others[name]) <= GRADIENT_TOLERANCE * own, name


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
@pytest.mark.parametrize("version", ["new", "1"])
@pytest.mark.parametrize("width, size, resolutions, in_ch", [(64, 96, "24", 5), (96, 160, "20,10", 2)])
def test_widths_and_sizes_between(width, size, resolutions, in_ch, version):
    """Sizes may be any multiple of 32; at the smaller one the other backend computes the same."""
    settings = {
        **NETWORK,
        "num_channels": width,
        "image_size": size,
        "channel_mult": "",
        "in_ch": in_ch,
        "attention_resolutions": resolutions,
        "version": version,
    }
    plan = make_plan(ModelConfig(**settings))
    backends = [Backend(name) for name in BACKENDS][: 1 if width == 96 else 2]
    x, t, _ = inputs(plan)
    found = []
    with computing("float32", *backends):
        for backend in backends:
            runtime = backend.module("runtime")
            model = backend.module("unet").make_network(plan)
            runtime.load_state(model, random_state(state_shapes(plan)))
            model.eval()
            with runtime.no_grad():
                out, cal = model(runtime.to_tensor(x[:1], "float32"), runtime.to_tensor(t[:1]))
            found.append((runtime.to_numpy(out), runtime.to_numpy(cal)))
    assert found[0][0].shape == (1, 2, size, size) and found[0][1].shape == (1, 1, size, size)
    for first, second in zip(found[0], found[-1]):
        assert np.isfinite(first).all() and largest(first - second) <= 3e-5 * largest(first)


def test_created_network_has_the_initial_weights_of_its_seed(backend):
    create_model = backend.module("script_util").create_model
    found = backend.module("runtime").state_arrays(create_model(seed=4, **NETWORK))
    expected = initial_state(ModelConfig(**NETWORK), 4)
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    with pytest.raises(UserError, match="--image_size: found 50"):
        create_model(seed=4, **{**NETWORK, "image_size": 50})

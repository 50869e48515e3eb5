"""The full-size network of each version against the original's recorded values: outputs and every
module's samples."""

import json
import math

import numpy as np
import pytest
from support.golden_rules import GOLDEN, golden_weight, relative_rms, rms, samples, settings

from guided_diffusion_core.config import ModelConfig, setting_names
from guided_diffusion_core.networks.medsegdiff.plan import make_plan
from guided_diffusion_core.networks.medsegdiff.state_shapes import BOTTLENECK_EMBED, state_shapes
from guided_diffusion_core.networks.state import is_buffer

TOLERANCE = 1e-5  # relative RMS; the original differs from itself by 1.6e-6 (golden README)
SAMPLES = 32
# Modules whose results the original drops: name -> the module that feeds it.
UNUSED_ANCHORS = {  # version `new`
    "hwm.upscale_logits_ops.0": "hwm.conv_blocks_localization.0",
    "hwm.upscale_logits_ops.1": "hwm.conv_blocks_localization.1",
}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("keys_*.json")), ids=lambda path: path.stem)
def test_state_dict_has_the_originals_names_shapes_and_order(path):
    golden = json.loads(path.read_text())
    names = setting_names("model")
    plan = make_plan(ModelConfig(**{name: value for name, value in golden["config"].items() if name in names}))
    expected = [(name, tuple(shape)) for name, shape in golden["state_dict"].items()]
    ours = state_shapes(plan)
    assert golden["parameters"] == sum(math.prod(shape) for name, shape in expected if not is_buffer(name))
    if plan.version == "1":  # the original draws this layer again in every call
        assert ours.pop(f"{BOTTLENECK_EMBED}.weight") == (512, 480, 1, 1)
        assert ours.pop(f"{BOTTLENECK_EMBED}.bias") == (512,)
    assert list(ours.items()) == expected


@pytest.fixture(scope="module", params=["new_64", "v1_256"])
def forward(request, backend):
    """Return the golden values, and the outputs and activations of our network on the same input.

    Only samples and the root mean square of each module's first result are kept: whole activations at 256 px take
    gigabytes.
    """
    golden = np.load(GOLDEN / f"forward_{request.param}.npz")
    runtime = backend.module("runtime")
    plan = make_plan(ModelConfig(**settings(golden["config"], setting_names("model"))))
    model = backend.module("unet").make_network(plan)
    runtime.load_state(model, {name: golden_weight(name, shape) for name, shape in state_shapes(plan).items()})
    model.eval()
    found = {}
    sources = {}

    def keep(name):
        def hook(module, inputs, output):
            if name not in found and not isinstance(output, (tuple, list)):
                array = runtime.to_numpy(output)
                found[name] = samples(array, SAMPLES), rms(array)
                if name in UNUSED_ANCHORS.values():
                    sources[name] = output

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
    steps = golden["timesteps"]
    size = plan.image_size
    x = np.random.RandomState(int(golden["input_seed"])).standard_normal((len(steps), plan.in_channels, size, size))
    with runtime.no_grad():
        out, cal = model(runtime.to_tensor(x, dtype="float32"), runtime.to_tensor(steps))
        modules = dict(model.named_modules())
        for name, source in UNUSED_ANCHORS.items():
            if name in modules:
                modules[name](sources[source])
    return golden, runtime.to_numpy(out), runtime.to_numpy(cal), found


def test_outputs(forward):
    golden, out, cal, _ = forward
    assert relative_rms(out, golden["out"]) <= TOLERANCE
    assert relative_rms(cal, golden["cal"]) <= TOLERANCE


def test_every_modules_samples(forward):
    golden, _, _, found = forward
    names = [key.removeprefix("act/") for key in golden.files if key.startswith("act/")]
    assert len(names) > 500
    assert not set(names) - set(found)
    errors = {}
    for name in names:
        scale = float(golden[f"rms/{name}"])
        sampled, size = found[name]
        errors[name] = max(relative_rms(sampled, golden[f"act/{name}"], scale), abs(size / scale - 1))
    worst = max(errors, key=errors.get)
    assert errors[worst] <= TOLERANCE, (worst, errors[worst])

"""The paper's network against the recorded values of lucidrains' package: names, outputs, every module's result."""

import dataclasses
import json

import numpy as np
import pytest
from support.golden_rules import relative_rms, rms, samples
from support.paper_golden import FOLDER, GoldenForward, paper_settings

from guided_diffusion_core.networks.registry import family_of, state_shapes

# Relative RMS of outputs; the package differs from itself by up to 2.5e-6 (golden README).
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}
# The same of modules: twice the largest difference of the package from itself, since both sides round.
MODULE_TOLERANCE = {"float32": 2 * 7.1e-6, "float64": 1e-13}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("keys_paper_*.json")), ids=lambda path: path.stem)
def test_names_shapes_and_order_are_the_packages(path):
    golden = json.loads(path.read_text())
    settings = paper_settings(golden["config"], golden["upstream_vit"])
    expected = {name: tuple(shape) for name, shape in golden["state_dict"].items()}
    assert list(state_shapes(settings).items()) == list(expected.items())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("keys_paper_*.json")), ids=lambda path: path.stem)
def test_weights_show_the_settings(path):
    golden = json.loads(path.read_text())
    settings = paper_settings(golden["config"], golden["upstream_vit"])
    family = family_of(settings)
    flags = {flag: getattr(settings, field) for flag, field in family.flags().items()}
    hidden = {flag: flags[flag] for flag in ("paper.heads", "paper.vit_heads", "paper.groups")}
    shown, guessed = family.infer(state_shapes(settings), hidden, path.name)
    assert not guessed
    full = shown.pop("paper.full_attention")
    assert dataclasses.replace(settings, full_attention=full).full_levels == settings.full_levels
    assert shown == {flag: flags[flag] for flag in shown}
    seen = {*shown, *hidden, "paper.full_attention"}
    of_transformers = {"paper.vit_dim_head", "paper.vit_depth", "paper.vit_patch"}
    assert seen >= set(flags) - (of_transformers if settings.ff_parser == "static" else set())


@pytest.fixture(scope="module", params=sorted(FOLDER.glob("forward_paper_*.npz")), ids=lambda path: path.stem)
def golden(request):
    return GoldenForward(request.param)


@pytest.fixture(scope="module")
def found(golden, backend):
    """Return the outputs with and without self-conditioning, and samples and RMS of each module's first result."""
    runtime = backend.module("runtime")
    before = runtime.precision()
    precision = "float64" if golden.is_float64 else "float32"
    runtime.set_precision(precision)
    model = backend.module("build").build_network(golden.settings, golden.weights())
    model.eval()
    results = {}

    def keep(name):
        def hook(module, inputs, output, named=None):
            if name not in results and not isinstance(output, (tuple, list)):
                array = runtime.to_numpy(output)
                results[name] = array if name.endswith(".filtered") else (samples(array, count), rms(array))

        return hook

    count = golden.values["act"].shape[1]
    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
    x = runtime.to_tensor(golden.x, dtype=precision)
    t = runtime.to_tensor(golden.t)
    outputs = {}
    with runtime.no_grad():
        if golden.self_condition is not None:
            mask = runtime.to_tensor(golden.self_condition, dtype=precision)
            outputs["out"] = runtime.to_numpy(model(x, t, self_condition=mask))
            outputs["out_no_self_cond"] = runtime.to_numpy(model(x, t))
        else:
            outputs["out"] = runtime.to_numpy(model(x, t))
    runtime.set_precision(before)
    return outputs, results, precision


def test_outputs_are_the_packages(golden, found):
    outputs, _, precision = found
    for name, values in outputs.items():
        assert relative_rms(values, golden.values[name]) < TOLERANCE[precision], name


def test_every_module_computes_what_the_packages_does(golden, found):
    _, results, precision = found
    compared = 0
    names = json.loads(str(golden.values["modules"]))
    for name, expected, scale in zip(names, golden.values["act"], golden.values["rms"]):
        if name in results:
            values, own = results[name]
            expected = expected[~np.isnan(expected)]
            assert relative_rms(values, expected, scale) < MODULE_TOLERANCE[precision], name
            assert own == pytest.approx(float(scale), rel=TOLERANCE[precision]), name
            compared += 1
    assert compared > 0.6 * len(names)

"""What every suite's cases run: weights, forward pass, gradients, and layers alone.

Each family is a function(port, case, weights, inputs, recorder) that runs in a backend's own
process. Nothing here imports a framework: `port.verbs` are those of the backend's `runtime`.
"""

import functools
import operator

import numpy as np

from guided_diffusion_core.backends import backend_module
from parity.capture import ROOT, LayerCapture, flatten, is_floating, unique_modules

# In units of what rounds an output's largest number; measured over all cases: 5.2 with Jittor, 0 with PyTorch.
FUSED = 32


def prepare(port, case, weights):
    """The case's network with the weights, in the case's mode."""
    model = port.build(case)
    port.load(model, weights)
    model.train() if case.training else model.eval()
    return model


def run_weights(port, case, weights, inputs, recorder):
    """The weights as they come back from the network."""
    model = prepare(port, case, weights)
    record_state(port, model, recorder, lambda name: True, "weight")


def record_state(port, model, recorder, wanted, rung):
    """Record those parameters and buffers of a network whose name is `wanted`."""
    for name, value in port.state(model).items():
        if wanted(name):
            recorder.add(rung, name, value)


def run_forward(port, case, weights, inputs, recorder):
    """Every module's inputs and outputs in one forward pass, and the buffers after it."""
    verbs = recorder.verbs
    with verbs.no_grad():
        plain = _outputs(port, prepare(port, case, weights), inputs, recorder)
        recorder.draws.clear()
        model = prepare(port, case, weights)
        with LayerCapture(model, port) as capture:
            outputs = _outputs(port, model, inputs, recorder)
    recorder.forward(capture)
    recorder.checks["recording changes nothing"] = _identical(verbs, plain, outputs)
    for name, tensor in outputs.items():
        recorder.add("result", name, tensor)
    if case.training:
        record_state(port, model, recorder, port.is_buffer, "buffer")


def _outputs(port, model, inputs, recorder):
    tensors = {name: recorder.verbs.to_tensor(value, _dtype(value, recorder.verbs)) for name, value in inputs.items()}
    return port.run(model, tensors, recorder.tape(2))


def _dtype(value, verbs):
    return verbs.precision() if np.issubdtype(value.dtype, np.floating) else None


def _identical(verbs, first, second):
    return first.keys() == second.keys() and all(
        verbs.to_numpy(first[name]).tobytes() == verbs.to_numpy(second[name]).tobytes() for name in first
    )


def _nearly_identical(verbs, first, second):
    """Whether outputs differ by rounding at most: Jittor fuses operators across modules and compiles them with
    -Ofast, so that a copy between two modules can change the order of a sum."""
    return first.keys() == second.keys() and all(
        _is_close(verbs.to_numpy(first[name]), verbs.to_numpy(second[name])) for name in first
    )


def _is_close(first, second):
    largest = np.nanmax(np.abs(first), initial=0)
    return np.allclose(first, second, rtol=0, atol=FUSED * np.finfo(first.dtype).eps * largest, equal_nan=True)


def parameters(port, model):
    """Name -> parameter of a network, buffers left out."""
    return {port.name(name): param for name, param in model.named_parameters() if not port.is_buffer(name)}


def run_gradients(port, case, weights, inputs, recorder):
    """The gradient of a weighted sum of all outputs, by every parameter and every module's input."""
    verbs = recorder.verbs
    optim = backend_module(port.backend, "optim")
    model = prepare(port, case, weights)
    params = parameters(port, model)
    plain = _outputs(port, model, inputs, recorder)
    # of the network as it is: the copies below add some gradients up in another order
    found = dict(zip(params, optim.gradients(_loss(verbs, plain), list(params.values()))))
    recorder.draws.clear()
    model = prepare(port, case, weights)
    with LayerCapture(model, port, verbs.tracked_copy) as capture:
        outputs = _outputs(port, model, inputs, recorder)
        loss = _loss(verbs, outputs)
    recorder.forward(capture)
    recorder.add("loss", "weighted sum", loss.reshape(1))
    recorder.backward(capture, loss, found, optim.gradients)
    recorder.checks["recording changes no more than rounding does"] = _nearly_identical(verbs, plain, outputs)


def _loss(verbs, outputs):
    """A number that every output takes part in."""
    return _total(_weighted_sum(verbs, tensor, k) for k, tensor in enumerate(outputs.values()))


def _total(numbers):
    """Sum of one-element tensors; not from Python's 0, beside which Jittor's float64 becomes float32."""
    return functools.reduce(operator.add, numbers)


def _weighted_sum(verbs, tensor, k):
    """A sum over a tensor with fixed random weights, which no symmetry cancels."""
    weights = np.random.default_rng((7, k)).standard_normal(tuple(tensor.shape))
    return (tensor * verbs.to_tensor(weights, verbs.precision())).sum()


def run_layers(port, case, weights, source, recorder):
    """Every layer alone on recorded inputs and output gradients: what it adds, not what it inherits.

    source: `Section` of the reference with inputs and, where the case has them, output gradients.
    """
    model = prepare(port, case, weights)
    modules = {port.name(name) or ROOT: module for name, module in unique_modules(model)}
    entries = source.by_key()
    for place, outline in source.arguments.items():
        name = place.rpartition("#")[0]
        if outline["pass"] < len(source.contexts):
            port.restore(model, source.contexts[outline["pass"]])
        if owns_buffers(port, modules[name]):
            port.load(model, weights)  # its ancestors' runs have changed them
        _run_layer(port, modules[name], place, outline["given"], source, entries, recorder)


def _run_layer(port, module, place, given, source, entries, recorder):
    verbs = recorder.verbs
    inputs = [verbs.to_tensor(array, _dtype(array, verbs)) for array in _numbered(source, entries, "input", place)]
    cotangents = _numbered(source, entries, "output gradient", place)
    backward = any(np.any(array) for array in cotangents)
    tracked = [verbs.tracked_copy(tensor) if backward and is_floating(tensor) else tensor for tensor in inputs]
    if backward:
        outputs = flatten(module(*_filled(given, tracked)))
    else:
        with verbs.no_grad():
            outputs = flatten(module(*_filled(given, tracked)))
    for k, tensor in enumerate(outputs):
        recorder.add("output", _site(place, k, outputs), tensor)
    if owns_buffers(port, module):
        for key, value in verbs.state_arrays(module).items():
            recorder.add("buffer", f"{place}.{key}", value)
    if backward:
        loss = _total(
            (tensor * verbs.to_tensor(array, verbs.precision())).sum() for tensor, array in zip(outputs, cotangents)
        )
        own = {key: param for key, param in parameters(port, module).items() if "." not in key}
        wanted = [tensor for tensor in tracked if is_floating(tensor)]
        found = backend_module(port.backend, "optim").gradients(loss, [*own.values(), *wanted])
        for key, gradient in zip(own, found):
            recorder.add("gradient", f"{place}.{key}", gradient)
        numbers = [k for k, tensor in enumerate(tracked) if is_floating(tensor)]
        for k, gradient in zip(numbers, found[len(own) :]):
            recorder.add("input gradient", _site(place, k, tracked), gradient)


def owns_buffers(port, module):
    """Whether a module without children holds buffers."""
    return any("." not in key and port.is_buffer(key) for key in module.state_dict())


def _numbered(source, entries, rung, place):
    """The arrays of a call's inputs or output gradients, in order."""
    single = entries.get(f"{rung}/{place}")
    if single:
        return [source.array(single)]
    arrays = []
    while f"{rung}/{place}[{len(arrays)}]" in entries:
        arrays.append(source.array(entries[f"{rung}/{place}[{len(arrays)}]"]))
    return arrays


def _filled(outline, tensors):
    """The arguments of an outline with its tensors."""
    if isinstance(outline, list):
        return [_filled(item, tensors) for item in outline]
    return tensors[outline["input"]] if isinstance(outline, dict) else outline


def _site(place, k, tensors):
    return place if len(tensors) == 1 else f"{place}[{k}]"


FAMILIES = {"weights": run_weights, "forward": run_forward, "gradients": run_gradients}

"""The families of every suite: weights, forward pass, gradients, and layers by themselves.

Each family is a function(port, case, weights, inputs, recorder) that runs in a backend's own process.
This module imports no framework: `recorder.verbs` is the backend's `runtime` module.
"""

import functools
import operator

import numpy as np

from guided_diffusion_core.backends import backend_module
from parity.capture import ROOT, LayerCapture, flatten, is_floating, unique_modules

# Largest change of an output by recording, in eps of its largest number. Measured over all cases: 5.2 with Jittor,
# 0 with PyTorch.
FUSED = 32


def prepare(port, case, weights):
    """Return the case's network with the weights, in the case's mode."""
    model = port.build(case)
    port.load(model, weights)
    if case.training:
        model.train()
    else:
        model.eval()
    return model


def run_weights(port, case, weights, inputs, recorder):
    """Record the weights as the network returns them after loading."""
    model = prepare(port, case, weights)
    record_state(port, model, recorder, lambda name: True, "weight")


def record_state(port, model, recorder, wanted, rung):
    """Record the parameters and buffers of a network for whose names `wanted` is true."""
    for name, value in port.state(model).items():
        if wanted(name):
            recorder.add(rung, name, value)


def run_forward(port, case, weights, inputs, recorder):
    """Record every module's inputs and outputs in one forward pass, and the buffers after it."""
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
    verbs = recorder.verbs
    tensors = {name: verbs.to_tensor(value, _dtype(value, verbs)) for name, value in inputs.items()}
    return port.run(model, tensors, recorder.tape(2))


def _dtype(value, verbs):
    """Return the tensor type for an array: the current precision for floats, otherwise None (unchanged)."""
    return verbs.precision() if np.issubdtype(value.dtype, np.floating) else None


def _identical(verbs, first, second):
    """Return True if outputs agree to the bit."""
    if first.keys() != second.keys():
        return False
    return all(verbs.to_numpy(first[name]).tobytes() == verbs.to_numpy(second[name]).tobytes() for name in first)


def _nearly_identical(verbs, first, second):
    """Return True if outputs differ at most by rounding.

    Jittor fuses operators across modules and compiles them with -Ofast. So a copy between two modules can
    change the order of a sum.
    """
    if first.keys() != second.keys():
        return False
    return all(_is_close(verbs.to_numpy(first[name]), verbs.to_numpy(second[name])) for name in first)


def _is_close(first, second):
    largest = np.nanmax(np.abs(first), initial=0)
    return np.allclose(first, second, rtol=0, atol=FUSED * np.finfo(first.dtype).eps * largest, equal_nan=True)


def parameters(port, model):
    """Return name -> parameter of a network, without the buffers."""
    return {port.name(name): param for name, param in model.named_parameters() if not port.is_buffer(name)}


def run_gradients(port, case, weights, inputs, recorder):
    """Record the gradients of a weighted sum of all outputs: of every parameter and every module's input."""
    verbs = recorder.verbs
    optim = backend_module(port.backend, "optim")
    model = prepare(port, case, weights)
    params = parameters(port, model)
    plain = _outputs(port, model, inputs, recorder)
    # Parameter gradients come from a run without recording: the copies below change the order of some sums.
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
    """Return a number that depends on every output."""
    return _total(_weighted_sum(verbs, tensor, k) for k, tensor in enumerate(outputs.values()))


def _total(numbers):
    """Sum one-element tensors. The sum does not start from Python's 0, which makes Jittor's float64 float32."""
    return functools.reduce(operator.add, numbers)


def _weighted_sum(verbs, tensor, k):
    """Sum a tensor with fixed random weights, so that no symmetry cancels the sum."""
    weights = np.random.default_rng((7, k)).standard_normal(tuple(tensor.shape))
    return (tensor * verbs.to_tensor(weights, verbs.precision())).sum()


def run_layers(port, case, weights, source, recorder):
    """Run every layer by itself on recorded inputs and output gradients, so that its errors are its own.

    source: `Section` of the reference with inputs and, if the case has them, output gradients.
    """
    model = prepare(port, case, weights)
    modules = {port.name(name) or ROOT: module for name, module in unique_modules(model)}
    entries = source.by_key()
    for call, outline in source.arguments.items():
        name = call.rpartition("#")[0]
        if outline["pass"] < len(source.contexts):
            port.restore(model, source.contexts[outline["pass"]])
        if owns_buffers(port, modules[name]):
            port.load(model, weights)  # earlier runs of its ancestors have changed the buffers
        _run_layer(port, modules[name], call, outline["given"], source, entries, recorder)


def _run_layer(port, module, call, given, source, entries, recorder):
    """Run one layer and record its outputs, buffers and gradients.

    call: such as "hwm.td.0#0". given: outline of its arguments. entries: those of `source` by key.
    """
    verbs = recorder.verbs
    inputs = [verbs.to_tensor(array, _dtype(array, verbs)) for array in _numbered(source, entries, "input", call)]
    cotangents = _numbered(source, entries, "output gradient", call)
    has_backward = any(np.any(array) for array in cotangents)
    if has_backward:
        tracked = [verbs.tracked_copy(tensor) if is_floating(tensor) else tensor for tensor in inputs]
        outputs = flatten(module(*_with_tensors(given, tracked)))
    else:
        tracked = inputs
        with verbs.no_grad():
            outputs = flatten(module(*_with_tensors(given, inputs)))
    for k, tensor in enumerate(outputs):
        recorder.add("output", _site(call, k, outputs), tensor)
    if owns_buffers(port, module):
        for key, value in verbs.state_arrays(module).items():
            recorder.add("buffer", f"{call}.{key}", value)
    if has_backward:
        _record_layer_gradients(port, module, call, tracked, outputs, cotangents, recorder)


def _record_layer_gradients(port, module, call, inputs, outputs, cotangents, recorder):
    """Record the gradients of a layer's own parameters and of its inputs, given those of its outputs."""
    verbs = recorder.verbs
    # The gradient of sum(output * cotangent) is the product of the cotangents with the layer's Jacobian.
    products = [tensor * verbs.to_tensor(array, verbs.precision()) for tensor, array in zip(outputs, cotangents)]
    loss = _total(product.sum() for product in products)
    params = {key: param for key, param in parameters(port, module).items() if "." not in key}
    numbers = [k for k, tensor in enumerate(inputs) if is_floating(tensor)]
    wanted = [*params.values(), *(inputs[k] for k in numbers)]
    found = backend_module(port.backend, "optim").gradients(loss, wanted)
    for key, gradient in zip(params, found):
        recorder.add("gradient", f"{call}.{key}", gradient)
    for k, gradient in zip(numbers, found[len(params) :]):
        recorder.add("input gradient", _site(call, k, inputs), gradient)


def owns_buffers(port, module):
    """Return True if a module itself, not one of its children, has buffers."""
    return any("." not in key and port.is_buffer(key) for key in module.state_dict())


def _numbered(source, entries, rung, call):
    """Return the arrays of a call's inputs or output gradients, in order."""
    single = entries.get(f"{rung}/{call}")
    if single:
        return [source.array(single)]
    arrays = []
    while f"{rung}/{call}[{len(arrays)}]" in entries:
        arrays.append(source.array(entries[f"{rung}/{call}[{len(arrays)}]"]))
    return arrays


def _with_tensors(outline, tensors):
    """Return the arguments of an outline, with tensors in the places of {"input": position}."""
    if isinstance(outline, list):
        return [_with_tensors(item, tensors) for item in outline]
    return tensors[outline["input"]] if isinstance(outline, dict) else outline


def _site(call, k, tensors):
    return call if len(tensors) == 1 else f"{call}[{k}]"


FAMILIES = {"weights": run_weights, "forward": run_forward, "gradients": run_gradients}

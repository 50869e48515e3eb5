"""Recording what a network computes, layer by layer, in a backend's own process.

The framework needs no hooks: the forward method of every module is wrapped on its instance. The table of backends
names that method (`Backend.forward`).
"""

from dataclasses import dataclass, field

from guided_diffusion_core.backends import BACKENDS

ROOT = "network"  # the name of the whole network, which the frameworks leave empty


@dataclass
class Call:
    """One call of one module.

    name:    name of the module. number: how many times it was called before.
    passes:  forward passes of the whole network before this one.
    given:   the arguments, tensors and others.
    inputs:  the tensors among the arguments. outputs: the tensors of the result; nested tuples are flattened.
    tracked: if gradients are recorded, the copies of the inputs that the module worked on.
    """

    name: str
    number: int
    passes: int
    module: object
    given: list
    inputs: list
    tracked: list
    outputs: list = field(default_factory=list)

    def site(self, kind, k):
        """Return the name of the k-th of `inputs` or `outputs`, such as "hwm#0[1]"; a single one has no index."""
        many = len(getattr(self, kind)) > 1
        return f"{self.name}#{self.number}" + (f"[{k}]" if many else "")


def is_tensor(value):
    """Return whether a value is an array of a framework."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def flatten(values):
    """Return the tensors in nested tuples and lists, in order."""
    if isinstance(values, (tuple, list)):
        return [tensor for value in values for tensor in flatten(value)]
    return [values] if is_tensor(values) else []


def is_floating(tensor):
    """Return whether a tensor of a framework holds floating-point numbers."""
    return "float" in str(tensor.dtype)


def unique_modules(model):
    """Yield (name, module) of every module once: Jittor lists a module with several parents under each name."""
    seen = set()
    for name, module in model.named_modules():
        if id(module) not in seen:
            seen.add(id(module))
            yield name, module


class LayerCapture:
    """Records every module call of a network while it is open.

    model: the network. port: its `Port`.
    track: function that copies a tensor, so that the gradient through one use of it can be asked
           for; None if no gradients are wanted.
    calls: the calls in the order of completion. events: (kind, call), with kind "input" on entry and "output"
           on completion. contexts: `Port.context` of each forward pass of the whole network.
    """

    def __init__(self, model, port, track=None):
        self.model = model
        self.port = port
        self.track = track
        self.calls = []
        self.events = []
        self.contexts = []
        self._forward = BACKENDS[port.backend].forward
        self._counts = {}
        self._undo = []

    def __enter__(self):
        for name, module in unique_modules(self.model):
            self._wrap(self.port.name(name) or ROOT, module)
        return self

    def __exit__(self, *error):
        for module, before in reversed(self._undo):
            if before is None:
                del module.__dict__[self._forward]
            else:
                module.__dict__[self._forward] = before

    def _wrap(self, name, module):
        inner = getattr(module, self._forward)
        self._undo.append((module, module.__dict__.get(self._forward)))

        def forward(*given):
            if name == ROOT:
                self.contexts.append(self.port.context(self.model))
            inputs = []
            tracked = []
            if self.track:
                given_inner = [self._tracked(value, tracked) for value in given]
            else:
                given_inner = given
            inputs = flatten(given)
            call = Call(
                name, self._counts.get(name, 0), max(len(self.contexts) - 1, 0), module, list(given), inputs, tracked
            )
            self._counts[name] = call.number + 1
            self.events.append(("input", call))
            result = inner(*given_inner)
            call.outputs = flatten(result)
            self.calls.append(call)
            self.events.append(("output", call))
            return result

        module.__dict__[self._forward] = forward

    def _tracked(self, value, tracked):
        if isinstance(value, (tuple, list)):
            return type(value)(self._tracked(item, tracked) for item in value)
        if not is_tensor(value):
            return value
        tracked.append(self.track(value) if is_floating(value) else value)
        return tracked[-1]


def uncalled_leaves(model, port, calls):
    """Return the names of the modules without children that no call reached."""
    called = {id(call.module) for call in calls}
    return [
        port.name(name)
        for name, module in unique_modules(model)
        if id(module) not in called and not _has_children(module)
    ]


def _has_children(module):
    return any(inner is not module for _, inner in module.named_modules())


def module_types(model, port):
    """Return module name -> name of its class, in the order of the network."""
    return {port.name(name) or ROOT: type(module).__name__ for name, module in unique_modules(model)}

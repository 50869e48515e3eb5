"""Recording of a case in a backend's process: from tensors of the framework to a section of a dump."""

import hashlib

import numpy as np

from guided_diffusion_core.noise import NoiseTape
from parity.capture import ROOT, is_floating, is_tensor, module_types, uncalled_leaves
from parity.dump import Entry, Section


class RecordingTape(NoiseTape):
    """A noise tape that records its draws.

    draws:    list that gets [site, step, case, member, digest of the values] of each draw, in order.
    repeated: function that returns True while the framework may repeat earlier draws (recomputation); a
              repeated draw is not recorded a second time.
    """

    def __init__(self, seed, draws, repeated):
        super().__init__(seed)
        self.draws = draws
        self.repeated = repeated

    def _generator(self, site, step, case, member):
        generator = super()._generator(site, step, case, member)
        # a second generator of the same place, because reading from the first one would change its draws
        probe = super()._generator(site, step, case, member).bytes(16)
        draw = [str(site), int(step), str(case), int(member), hashlib.blake2b(probe).hexdigest()[:16]]
        if not (self.repeated() and draw in self.draws):
            self.draws.append(draw)
        return generator


class Recorder:
    """Collects the entries of one section.

    verbs:  the backend's `runtime` module.
    checks: results of the family's own checks, name -> bool; False fails the comparison.
    """

    def __init__(self, verbs):
        self.verbs = verbs
        self.draws = []
        self.checks = {}
        self.contexts = []
        self.types = {}
        self.uncalled = []
        self.arguments = {}
        self._entries = []
        self._values = {}
        self._names = {}

    def tape(self, seed, repeated=lambda: False):
        """Return a noise tape whose draws are recorded; repeated: see `RecordingTape`."""
        return RecordingTape(seed, self.draws, repeated)

    def add(self, rung, site, value):
        """Record a tensor of the framework, a numpy array or a number. The same object is stored only once."""
        name = self._names.get(id(value))
        if name is None or self._values[name] is not value:
            name = f"{rung}/{site}"
            self._names[id(value)] = name
            self._values[name] = value
        self._entries.append((rung, site, name))

    def forward(self, capture):
        """Record the inputs and outputs of every call of a `LayerCapture`, in order."""
        for kind, call in capture.events:
            for k, tensor in enumerate(getattr(call, f"{kind}s")):
                self.add(kind, call.site(f"{kind}s", k), tensor)
            if kind == "input":
                place = f"{call.name}#{call.number}"
                inputs = iter(range(len(call.inputs)))
                self.arguments[place] = {
                    "pass": call.passes,
                    "given": [_outline(value, inputs) for value in call.given],
                }
        self.contexts += capture.contexts
        self.types |= module_types(capture.model, capture.port)
        self.uncalled = uncalled_leaves(capture.model, capture.port, capture.calls)

    def backward(self, capture, loss, params, gradients):
        """Record the gradients of `loss`: of every call's outputs and inputs, and of each layer's parameters.

        The order is that of the backward pass, from the loss to the input.
        params: name -> gradient of a parameter. gradients: the backend's `optim.gradients`.
        """
        wanted = []  # tensors to differentiate by, each once: Jittor gives a repeated one no gradient
        indices = {}  # id of a tensor -> its index in `wanted`
        places = []  # (rung, site, index in `wanted`, or None for a parameter) of each entry to record
        seen = set()  # modules whose parameters are already among `places`
        owners = {name: name.rpartition(".")[0] or ROOT for name in params}
        for kind, call in reversed(capture.events):
            tensors = call.outputs if kind == "output" else call.tracked
            for k, tensor in enumerate(tensors):
                if is_floating(tensor):
                    index = indices.setdefault(id(tensor), len(wanted))
                    if index == len(wanted):  # a new tensor
                        wanted.append(tensor)
                    places.append((f"{kind} gradient", call.site(f"{kind}s", k), index))
            if kind == "output" and call.name not in seen:
                seen.add(call.name)
                places += [("gradient", name, None) for name in params if owners[name] == call.name]
        found = gradients(loss, wanted)
        for rung, site, index in places:
            self.add(rung, site, params[site] if index is None else found[index])

    def section(self, case, precision, variant):
        """Return the finished `Section`, with its tensors."""
        self.verbs.synchronize()
        tensors = {name: self._array(value) for name, value in self._values.items()}
        entries = []
        for rung, site, name in self._entries:
            array = tensors[name]
            entries.append(Entry(rung, site, name, str(array.dtype), array.shape))
        return Section(
            case.name,
            precision,
            variant,
            entries=entries,
            draws=self.draws,
            settings=dict(case.settings),
            types=self.types,
            uncalled=self.uncalled,
            checks=self.checks,
            contexts=self.contexts,
            arguments=self.arguments,
            tensors=tensors,
        )

    def _array(self, value):
        if is_tensor(value) and not isinstance(value, (np.ndarray, np.generic)):
            return self.verbs.to_numpy(value)
        return np.asarray(value)


def _outline(value, inputs):
    """Return an argument as JSON; a tensor becomes {"input": its position among the call's inputs}."""
    if isinstance(value, (tuple, list)):
        return [_outline(item, inputs) for item in value]
    return {"input": next(inputs)} if is_tensor(value) else value

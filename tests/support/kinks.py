"""Signs at the kinks of the leaky ReLUs. The recorded gradients of the original depend on them.

A leaky ReLU's slope jumps at zero. An input within rounding error of zero is positive in one
arithmetic and negative in another, and each such element changes the gradients before it by
about 1e-3 of their size. The golden gradients were recorded on another processor; which of
those elements were positive there is found here, from a few samples of the gradients.
"""

import numpy as np
from support.golden_rules import samples

from guided_diffusion_core.networks.state import is_buffer, moved_by_one_ulp

SLOPES = (0.01, 1.0)
SAMPLES = 8


class KinkedHighway:
    """The highway network in training mode on one batch, with given signs at its leaky ReLUs.

    backend: the backend under test.
    plan:    UNetPlan.
    weights: name -> array of the whole network.
    image:   (N, C, S, S), float32.
    mask:    (N, 1, S, S), float32.
    """

    def __init__(self, backend, plan, weights, image, mask):
        self.runtime, self.nn, self.optim = (backend.module(name) for name in ("runtime", "nn", "optim"))
        self.network = backend.module("highway").HighwayUNet(plan.highway)
        self.weights = {name.removeprefix("hwm."): value for name, value in weights.items() if name.startswith("hwm.")}
        self.image = image
        self.mask = mask

    def gradients(self, weights, factors=None):
        """Return the gradients of 10 loss_cal by name, and the inputs of the leaky ReLUs by name."""
        runtime = self.runtime
        runtime.load_state(self.network, weights)
        self.network.train()
        inputs = {}
        replace_slopes(self.network, self.nn, runtime, factors, inputs)
        _, cal = self.network(runtime.to_tensor(self.image))
        error = runtime.to_tensor(self.mask) - cal
        loss = 10 * self.nn.mean_flat(error * error).mean()
        named = [(name, param) for name, param in self.network.named_parameters() if not is_buffer(name)]
        found = self.optim.gradients(loss, [param for _, param in named])
        return (
            {name: runtime.to_numpy(value) for (name, _), value in zip(named, found)},
            {name: runtime.to_numpy(value) for name, value in inputs.items()},
        )


def replace_slopes(module, nn, runtime, factors, inputs):
    """Let each leaky ReLU of a module record its input in `inputs`.

    factors: name -> array of slopes, by which the layers multiply instead; None leaves their own.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.LeakyReLU):
            layer.__dict__["forward"] = layer.__dict__["execute"] = _leaky(
                name, type(layer), layer, runtime, factors, inputs
            )


def restore_slopes(module, nn):
    """Undo `replace_slopes`."""
    for _, layer in module.named_modules():
        if isinstance(layer, nn.LeakyReLU):
            del layer.__dict__["forward"], layer.__dict__["execute"]


def _leaky(name, kind, layer, runtime, factors, inputs):
    original = kind.__dict__.get("forward") or kind.__dict__["execute"]

    def apply(x):
        inputs[name] = x
        return original(layer, x) if factors is None else x * runtime.to_tensor(factors[name])

    return apply


def golden_slopes(highway, golden, skipped):
    """Find the slopes under which the golden gradients of the highway network were recorded.

    highway: KinkedHighway.
    golden:  the arrays of train_new_64.npz.
    skipped: function of a parameter's name; its gradient is left out if true.
    Returns (name -> array of slopes, list of the inputs at the flipped elements).

    Candidates are the elements whose input is smaller than the change there by one ulp in the weights. They are
    flipped one after the other as long as that brings the gradients nearer.
    """
    names = [
        key.removeprefix("gradnorm/hwm.")
        for key in golden.files
        if key.startswith("gradnorm/hwm.") and not skipped(key.removeprefix("gradnorm/"))
    ]

    def sampled(gradients):
        return np.concatenate(
            [samples(gradients[name], SAMPLES) / _scale(golden, name, gradients[name].size) for name in names]
        ).astype(np.float64)

    start, inputs = highway.gradients(highway.weights)
    _, moved = highway.gradients(moved_by_one_ulp(highway.weights))
    slopes = {name: np.where(value > 0, SLOPES[1], SLOPES[0]).astype(np.float32) for name, value in inputs.items()}
    candidates = [
        (name, tuple(index))
        for name, value in inputs.items()
        for index in np.argwhere(np.abs(value) <= np.abs(value - moved[name]).max())
    ]
    effects = [
        sampled(highway.gradients(highway.weights, _flipped(slopes, [candidate]))[0]) - sampled(start)
        for candidate in candidates
    ]
    wanted = np.concatenate([golden[f"grad/hwm.{name}"] / _scale(golden, name, start[name].size) for name in names])
    chosen = _greedy(wanted.astype(np.float64) - sampled(start), effects)
    flips = [candidates[k] for k in chosen]
    return _flipped(slopes, flips), [float(inputs[name][index]) for name, index in flips]


def _scale(golden, name, size):
    return float(golden[f"gradnorm/hwm.{name}"]) / np.sqrt(size)


def _flipped(slopes, elements):
    flipped = {name: value.copy() for name, value in slopes.items()}
    for name, index in elements:
        flipped[name][index] = sum(SLOPES) - flipped[name][index]
    return flipped


def _greedy(residual, effects):
    """Return the indices of the effects that shrink the residual most, subtracted one after the other."""
    chosen = []
    while True:
        norms = [np.linalg.norm(residual - effect) for effect in effects]
        best = int(np.argmin(norms))
        if best in chosen or norms[best] > 0.95 * np.linalg.norm(residual):
            return chosen
        chosen.append(best)
        residual = residual - effects[best]

"""The parts of a fault: how it is registered, and the places of a port that it changes.

A fault is a function(port) that returns a context manager. While that is open, everything that the worker builds and
runs has the fault. No source file changes. Faults use only what the backends share, so that each of them can be
the port. `CONTROLS` are harmless changes, which must raise no alarm.
"""

import importlib
from dataclasses import dataclass
from unittest import mock

from guided_diffusion_core.backends import BACKENDS


@dataclass(frozen=True)
class Fault:
    """A planted fault.

    plant: function(port) -> context manager. about: the mistake of a porter that it stands for.
    site:  where the harness has to find it: a module, or an entry (`RUNG SITE`) or a problem with the wildcards
           * and ?.
    """

    name: str
    about: str
    site: str
    plant: object


FAULTS = []
CONTROLS = []


def fault(about, site):
    """Register a function(port) -> context manager under its own name."""
    return lambda plant: FAULTS.append(Fault(plant.__name__.replace("_", "-"), about, site, plant)) or plant


def control(about):
    """Register a harmless change."""
    return lambda plant: CONTROLS.append(Fault(plant.__name__.replace("_", "-"), about, "", plant)) or plant


def replaced(owner, name, change):
    """Replace a function of a module or a class: its call becomes change(original function, *arguments)."""
    original = getattr(owner, name)
    return mock.patch.object(owner, name, lambda *args, **keywords: change(original, *args, **keywords))


def changed_model(port, change):
    """Apply change(modules by name) to every network that the port builds."""
    build = port.build

    def built(case):
        model = build(case)
        change(dict(model.named_modules()))
        return model

    return mock.patch.object(port, "build", built)


def changed_forward(port, name, change):
    """Replace the forward pass of one module, in networks that have it, by change(module, forward, *args)."""

    def replace(modules):
        if name not in modules:
            return
        module = modules[name]
        method = BACKENDS[port.backend].forward
        forward = getattr(module, method)
        module.__dict__[method] = lambda *args: change(module, forward, *args)

    return changed_model(port, replace)


def changed_result(port, name, change):
    """Pass what one module returns through a function."""
    return changed_forward(port, name, lambda module, forward, *args: change(forward(*args)))


def changed_weights(port, change):
    """Pass the weights that the port loads through change(dict)."""
    load = port.load
    return mock.patch.object(port, "load", lambda model, arrays: load(model, change(dict(arrays))))


def assign(port, tensor, array):
    """Set a tensor's values in place, outside of any gradient."""
    port.runtime.assign(tensor, array)


def constant(port, array):
    """Return an array as a tensor of the run's precision."""
    return port.runtime.to_tensor(array, dtype=port.runtime.precision())


def library(port):
    """Return the framework's namespace, and its namespace of functions such as relu."""
    framework = importlib.import_module(BACKENDS[port.backend].framework)
    return framework, getattr(framework.nn, "functional", framework.nn)


def concatenated(port, change):
    """Let the network join change([features, skip]) instead of the two tensors."""
    framework, _ = library(port)
    network = port.module("unet")
    # the name under which the network's module has imported the framework
    alias = next(name for name, value in vars(network).items() if value is framework)

    class Changed:
        def __getattr__(self, name):
            return getattr(framework, name)

        @staticmethod
        def concat(tensors, dim):
            return framework.concat(change(tensors) if len(tensors) == 2 else tensors, dim=dim)

        cat = concat

    return mock.patch.object(network, alias, Changed())


def changed_adamw(port, change):
    """Replace AdamW's step by change(optimizer, step, gradients, lr)."""
    adamw = port.module("optim").AdamW
    step = adamw.step
    return mock.patch.object(adamw, "step", lambda self, gradients, lr: change(self, step, gradients, lr))


def overwritten_update(port, rule, decay):
    """Let AdamW keep its moments, but move the parameters by rule(m, v, n).

    rule:  function of both moments and the number of the step; returns the move in units of the rate.
    decay: decoupled weight decay.
    """
    runtime = port.runtime
    counts = {}

    def change(optimizer, step, gradients, lr):
        before = [runtime.to_numpy(param) for param in optimizer.params]
        step(optimizer, gradients, lr)
        counts[id(optimizer)] = n = counts.get(id(optimizer), 0) + 1
        for param, old, m, v in zip(optimizer.params, before, *optimizer.moments()):
            move = rule(runtime.to_numpy(m), runtime.to_numpy(v), n)
            assign(port, param, (old * (1 - lr * decay) - lr * move).astype(old.dtype))
        runtime.synchronize()

    return changed_adamw(port, change)


WEIGHT_DECAY = 0.05  # of the cases

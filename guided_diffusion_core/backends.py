"""The table of backends: one implementation of the networks for each framework.

Whatever depends on a backend reads this table, so that another one needs no change elsewhere: call `register`
before it is used. `python -m parity --suite MODULE` imports the suite's module in every process, which is the
place to register a backend that is compared there.
"""

import importlib
import importlib.util
import sys
from contextlib import contextmanager
from dataclasses import dataclass

from guided_diffusion_core.errors import UserError


@dataclass(frozen=True)
class Backend:
    """An implementation of the networks in one framework.

    name:         what the user types, such as `--backend pytorch`.
    package:      the Python package with the implementation. Its modules have the same names in every backend.
    framework:    the top-level module of the framework.
    distribution: the name of the framework for pip.
    launcher:     the program that starts several processes of it: "torchrun" or "mpirun".
    forward:      the method of a layer that computes its result when the layer is called.
    """

    name: str
    package: str
    framework: str
    distribution: str
    launcher: str
    forward: str = "forward"


BACKENDS = {}  # name -> Backend


def register(backend):
    """Add a `Backend` to the table. Registering the same one again changes nothing.

    Raises ValueError if another backend has its name.
    """
    if BACKENDS.setdefault(backend.name, backend) != backend:
        raise ValueError(f"there is another backend of the name {backend.name}")


register(Backend("pytorch", "guided_diffusion_pt", "torch", "torch", launcher="torchrun"))
register(Backend("jittor", "guided_diffusion_jt", "jittor", "jittor", launcher="mpirun", forward="execute"))

# The two that are compared where the user names none: the reference and the candidate.
COMPARED = ("pytorch", "jittor")


def is_installed(name):
    """Return whether the framework of a backend can be imported."""
    return importlib.util.find_spec(BACKENDS[name].framework) is not None


def installed_backends():
    """Return the names of the backends whose frameworks are installed. Raises `UserError` if there is none."""
    names = [name for name in BACKENDS if is_installed(name)]
    if not names:
        raise UserError(f"no backend is installed in {sys.prefix}. {_how_to_install('pytorch')}")
    return names


def _how_to_install(name):
    return f"Run in the checkout of medsegdiff-parity: pip install .[{name}]"


def advice_to_use(name):
    """Return the advice to use a backend, with how to install it where it is not installed."""
    return f"use --backend {name}." if is_installed(name) else f"install the backend {name}. {_how_to_install(name)}"


def start_backend(name, say=False, **settings):
    """Prepare this process for a backend and return its `runtime` module.

    say:      print on stderr which device computes.
    settings: threads, precision and those of `ComputeConfig`, as `runtime.start` takes them. A further call only
              changes the settings.
    Raises `UserError` if the framework is not installed, or the machine or the backend cannot do what is asked.
    """
    with _explained(name):
        runtime = importlib.import_module(f"{BACKENDS[name].package}.runtime")
        runtime.start(**settings)
    if say:
        print(f"device: {runtime.current.device}", file=sys.stderr)
    return runtime


def backend_module(name, module):
    """Import a module of a backend's package, such as backend_module("jittor", "unet").

    It starts the backend with the default settings if nothing has started it yet. Raises `UserError` as
    `start_backend` does.
    """
    package = BACKENDS[name].package
    with _explained(name):
        runtime = importlib.import_module(f"{package}.runtime")
        if not runtime.started():
            runtime.start()
        return importlib.import_module(f"{package}.{module}")


@contextmanager
def _explained(name):
    """Say how to install the backend's framework where it is missing."""
    backend = BACKENDS[name]
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in (backend.framework, f"{backend.framework}_utils"):
            raise
        others = [f"--backend {other}" for other in BACKENDS if other != name and is_installed(other)]
        advice = f"Give {' or '.join(others)}, which is installed. Or: " if others else ""
        found = f"--backend {name}: {backend.distribution} is not installed in {sys.prefix}."
        raise UserError(f"{found} {advice}{_how_to_install(name)}") from error

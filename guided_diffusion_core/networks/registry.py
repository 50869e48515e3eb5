"""The table of all families of networks, and the properties of a network by its settings."""

import functools
import importlib
import importlib.util
import pkgutil
from importlib.metadata import entry_points

from guided_diffusion_core import networks
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.noise import NoiseTape

ENTRY_POINTS = "medsegdiff.networks"


@functools.cache
def _all_families(folders):
    """Return the families in some folders, by name. The folders are an argument because one may be added later."""
    found = {}
    for entry in sorted(pkgutil.iter_modules(folders), key=lambda entry: entry.name):
        module = f"{networks.__name__}.{entry.name}"
        if entry.ispkg and importlib.util.find_spec(f"{module}.family"):
            family = importlib.import_module(f"{module}.family").FAMILY
            found[family.name] = family
    return found


@functools.cache
def _add_installed():
    """Add the folders of other distributions: an entry point "medsegdiff.networks" names a package of families."""
    for entry in entry_points(group=ENTRY_POINTS):
        for folder in entry.load().__path__:
            add_folder(folder)


def add_folder(folder):
    """Add the families of a folder, each in a folder `NAME/` with a `family.py`."""
    if str(folder) not in networks.__path__:
        networks.__path__.append(str(folder))
        importlib.invalidate_caches()


def families():
    """Return name -> `Family` of all families, sorted by the names of their folders."""
    _add_installed()
    return _all_families(tuple(networks.__path__))


def family_named(name):
    """Return the `Family` of a name. Raises `UserError` if there is none."""
    found = families()
    if name not in found:
        raise found_expected("--network", repr(name), " or ".join(found), "Choose one of them.")
    return found[name]


def family_of(settings):
    """Return the `Family` of a network's settings. Raises `UserError` if no family has such settings."""
    for family in families().values():
        if family.has(settings):
            return family
    raise found_expected("network", settings, f"settings of {' or '.join(families())}", "Name one with --network.")


def make_plan(settings):
    """Return the plan of a network. Raises `UserError` for impossible settings."""
    return family_of(settings).plan(settings)


def state_shapes(settings):
    """Return an ordered dict name -> shape of every parameter and buffer of a network."""
    family = family_of(settings)
    return family.state_shapes(family.plan(settings))


def initial_state(settings, seed):
    """Return the parameters and buffers at the start of a training: name -> float32 array (int64 for counters).

    Both backends start from them, so that the same seed gives the same network.
    """
    family = family_of(settings)
    return family.initial_state(family.plan(settings), NoiseTape(seed))


def repaired(settings, arrays, where):
    """Return a network's arrays from a file, and add those that other software leaves out.

    where: name of the file, for errors.
    """
    family = family_of(settings)
    return family.repair(family.state_shapes(family.plan(settings)), arrays, where)


def smallest_batch(settings):
    """Return the smallest number of examples of a forward pass in training."""
    family = family_of(settings)
    return family.smallest_batch(family.plan(settings))


def kept_numbers(settings):
    """Return the numbers that a step of training keeps of one example, about; None for a family that does not say."""
    family = family_of(settings)
    return family.kept_numbers(family.plan(settings)) if family.kept_numbers else None

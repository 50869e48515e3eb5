"""Find the state dict of a network in what a pickle holds: alone, or beside other things that a training has saved."""

from guided_diffusion_core.conversion.pickles import Foreign
from guided_diffusion_core.conversion.stand_ins import ARRAY_TYPES, BFLOAT16, Weights
from guided_diffusion_core.errors import found_expected, join_names

_DEPTH = 2  # levels of names above a state dict in a checkpoint, such as ema/state_dict
# The tensors of a state dict have numbers of their own in the file; views and tied weights share some. A file in which
# many tensors share the same numbers could ask for any amount of memory.
_LARGEST_SHARE = 4
_SAVE_STATE = "Save its state_dict() instead, with the software that made it: torch.save(model.state_dict(), FILE)."


class StateDict(dict):
    """Numpy arrays by name. notes: sentences about how they were found."""

    def __init__(self, arrays, notes=()):
        super().__init__(arrays)
        self.notes = tuple(notes)


def arrays_of(tree, where, length, key=""):
    """Return the `StateDict` in an unpickled tree.

    where:  the file, for errors.
    length: its bytes.
    key:    which one of several to take: its names in the file, joined by "/"; empty: the only one.
    Raises `UserError` if there is none, if there are several, and if its tensors are larger than the file explains.
    """
    _refuse_others(tree, where)
    found = {"": tree} if all(map(_is_array, tree.values())) else dict(_nested(tree, ()))
    if not found:
        raise _without_weights(tree, where)
    if key and key not in found:
        raise found_expected("--state", repr(key), _listed(found), "Name one of them, or leave the flag out.")
    if not key and len(found) > 1:
        raise found_expected(
            where,
            f"{len(found)} state dicts: {_listed(found)}",
            "the name of one",
            f"Name it, for example: --state {next(iter(found))}",
        )
    key = key or next(iter(found))
    state = found[key]
    _check_entries(state, where)
    _check_size(state, where, length)
    notes = []
    if key:
        others = [str(name) for name in tree if name != key.split("/")[0]]
        rest = f"; passed over: {join_names(others)}" if others else ""
        notes.append(f"The weights are those of {key}{rest}.")
    half = sum(value.kind == BFLOAT16 for value in state.values())
    if half:
        notes.append(f"{half} tensors were widened from bfloat16 to float32, which is exact.")
    return StateDict({name: value.array() for name, value in state.items()}, notes)


def _refuse_others(tree, where):
    """Raise `UserError` for a pickle that is no dict, and for the state of an optimizer."""
    if isinstance(tree, Foreign):
        raise found_expected(where, f"a whole object of {tree.name}", "the state dict of a network", _SAVE_STATE)
    if not isinstance(tree, dict) or not tree:
        kind = type(tree).__name__.strip("_")
        raise found_expected(where, f"{kind} without weights", "a state dict", "Use another file.")
    if "param_groups" in tree or "defaults" in tree:
        raise found_expected(
            where,
            "the state of an optimizer",
            "the weights of a network",
            "Use model* or ema_*, in the original savedmodel* or emasavedmodel_*, which lie beside it.",
        )


def _nested(tree, path):
    """Yield (names joined by "/", state dict) of every state dict with a matrix inside a dict."""
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, dict) or "param_groups" in value:
            continue
        place = (*path, name)
        arrays = [item for item in value.values() if _is_array(item)]
        # dicts of numbers without a matrix are records, such as losses
        if 2 * len(arrays) > len(value) and any(len(item.shape) > 1 for item in arrays):
            yield "/".join(place), value
        elif len(place) < _DEPTH:
            yield from _nested(value, place)


def _is_array(value):
    return isinstance(value, Weights) and (value.kind in ARRAY_TYPES or value.kind == BFLOAT16)


def _listed(found):
    return join_names(f"{name} ({len(state)} tensors)" for name, state in found.items())


def _without_weights(tree, where):
    """Return the `UserError` about a dict without a state dict."""
    if any(isinstance(value, Weights) for value in tree.values()):
        _check_entries(tree, where)
    objects = [f"{name} ({value.name})" for name, value in tree.items() if isinstance(value, Foreign)]
    if objects:
        return found_expected(where, f"whole objects: {join_names(objects)}", "a state dict", _SAVE_STATE)
    return found_expected(where, f"a dict without weights: {join_names(tree)}", "a state dict", "Use another file.")


def _check_entries(state, where):
    """Refuse a state dict with entries that are not arrays under names; `UserError`."""
    wrong = []
    for name, value in state.items():
        if not _is_array(value) or not isinstance(name, str):
            kind = f" (array of {value.kind})" if isinstance(value, Weights) else ""
            wrong.append(f"{name}{kind}")
    if wrong:
        raise found_expected(
            where,
            f"entries that are not arrays: {join_names(wrong)}",
            "only a state dict",
            "Save the network's state_dict() itself.",
        )


def _check_size(state, where, length):
    """Refuse tensors that need much more memory than the file is long; `UserError`."""
    claimed = sum(value.nbytes for value in state.values())
    if claimed > _LARGEST_SHARE * length:
        raise found_expected(
            where,
            f"tensors of {claimed / 2**20:.0f} MiB in a file of {length / 2**20:.2f} MiB",
            f"at most {_LARGEST_SHARE} times the file's size",
            "Do not use this file with other software: many of its tensors share the same numbers.",
        )

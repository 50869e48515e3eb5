"""Label maps: which stored values of a mask file belong to which named mask.

The K masks of a case are binary and may overlap: a tumour's core lies within the whole tumour.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from guided_diffusion_core.errors import found_expected

SINGLE = "mask"  # the name of the one mask of a layout without named labels
NAME = re.compile(r"[a-z0-9_]+")
SHOWN_VALUES = 8  # unknown values that an error lists


@dataclass(frozen=True)
class LabelMap:
    """The masks of a file of labels, by name.

    names:     K label names of [a-z0-9_]+, in the order of the mask's channels.
    values:    for each name the frozenset of stored values that belong to it, or None for all that the
               layout's binary rule calls foreground: what is above zero in a volume, what reaches half of
               the largest value in a picture (`images.read_mask`).
    known:     stored values that may occur beyond `values`: the background, and labels not chosen.
    exclusive: stored values of which a file may hold one only, because they are two codes of one thing.
    hint:      what to do about other values, where there is more to say.
    plain:     whether a binary picture is of unknown origin, see `images.read_mask`.
    """

    names: tuple = (SINGLE,)
    values: tuple = (None,)
    known: frozenset = frozenset({0})
    exclusive: frozenset = frozenset()
    hint: str = ""
    plain: bool = False

    def __post_init__(self):
        wrong = [name for name in self.names if not NAME.fullmatch(name)]
        distinct = len(set(self.names)) == len(self.names) == len(self.values)
        if wrong or not distinct or not self.names:
            raise ValueError(f"label names {self.names} with {len(self.values)} sets of values")

    def __len__(self):
        return len(self.names)

    @property
    def is_binary(self):
        """Whether the stored values have no meaning beyond foreground and background."""
        return all(values is None for values in self.values)

    def select(self, spec, default):
        """The map of the labels that a value of `--labels` names, in that order.

        spec: names separated by commas; empty for `default`, a tuple of names.
        Raises `UserError` for a name that the map does not have, and for one given twice.
        """
        names = split_names(spec) or tuple(default)
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise found_expected(
                "--labels", f"{', '.join(unknown)!r}", f"names out of {', '.join(self.names)}", "Choose among these."
            )
        values = tuple(self.values[self.names.index(name)] for name in names)
        return replace(self, names=names, values=values, known=self.allowed)

    def without(self, value):
        """The same map, in which a stored value does not occur."""
        values = tuple(kept if kept is None else kept - {value} for kept in self.values)
        return replace(self, values=values, known=self.known - {value}, exclusive=self.exclusive - {value})

    @property
    def allowed(self):
        """All stored values that may occur."""
        return self.known.union(*(values for values in self.values if values is not None))

    def masks(self, array, where):
        """The masks of an array of stored values: bool (K, *array.shape).

        where: the file, for the error.
        Raises `UserError` for stored values that are not `allowed`, or of which two exclude each other,
        unless the map is binary.
        """
        array = np.asarray(array)
        if not self.is_binary:
            self.check(np.unique(array), where)
        return np.stack([array > 0 if values is None else np.isin(array, sorted(values)) for values in self.values])

    def check(self, found, where):
        """Raise `UserError` if the distinct stored values `found` of a file are not the map's."""
        unknown = sorted(set(np.asarray(found).tolist()) - self.allowed)
        both = sorted(self.exclusive & set(np.asarray(found).tolist()))
        if unknown:
            shown = ", ".join(f"{value:g}" for value in unknown[:SHOWN_VALUES])
            more = f" and {len(unknown) - SHOWN_VALUES} more" if len(unknown) > SHOWN_VALUES else ""
            raise found_expected(
                where,
                f"label values {shown}{more}",
                "values out of " + ", ".join(f"{value:g}" for value in sorted(self.allowed)),
                self.hint or "Correct the file, or choose the layout and labels that it is of.",
            )
        if len(both) > 1:
            raise found_expected(
                where,
                f"the label values {' and '.join(map(str, both))} in one file",
                "one of them, because they are two codes of the same label",
                "Correct the file.",
            )


def split_names(spec):
    """The names of a `--labels` value, a tuple. Raises `UserError` for a malformed or repeated one."""
    names = tuple(part.strip() for part in spec.split(",")) if spec.strip() else ()
    for name in names:
        if not NAME.fullmatch(name) or names.count(name) > 1:
            raise found_expected(
                "--labels",
                repr(spec),
                "different names of a to z, 0 to 9 and _, with commas between",
                "Write for example whole_tumour,tumour_core.",
            )
    return names

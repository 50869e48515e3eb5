"""Label maps: which stored values of a mask file belong to which named mask.

The K masks of a case are binary and may overlap: the core of a tumour, for example, is part of the whole tumour.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from guided_diffusion_core.data.formats.mask_values import foreground, whole_values
from guided_diffusion_core.data.names import LABEL_FORM, is_label_name, name_key
from guided_diffusion_core.errors import found_expected

SINGLE = "mask"  # the name of the one mask in a layout without named labels
_COMMAS = re.compile("[,\uff0c\u3001]")  # the comma of the keyboard, and those of Chinese and Japanese
SHOWN_VALUES = 8  # unknown values that an error lists


@dataclass(frozen=True)
class LabelMap:
    """The masks that a label file holds, by name.

    names:     K label names (`names.is_label_name`), in the order of the mask's channels.
    values:    for each name the frozenset of stored values that belong to it. None means the foreground of a
               binary file: all values above zero in a volume, all values from half of the largest one on in a
               picture (`binary_masks`).
    known:     stored values that may occur in addition to `values`: the background, and labels not chosen.
    exclusive: stored values that must not occur together in one file, because they are two codes for one label.
    hint:      advice for the error about unknown values, where the general advice is not enough.
    plain:     True if a binary picture is of unknown origin, see `binary_masks.levels_of`.
    threshold: smallest value of the foreground of a binary file with fractions; 0 refuses fractions.
    """

    names: tuple = (SINGLE,)
    values: tuple = (None,)
    known: frozenset = frozenset({0})
    exclusive: frozenset = frozenset()
    hint: str = ""
    plain: bool = False
    threshold: float = 0.0

    def __post_init__(self):
        malformed = [name for name in self.names if not is_label_name(name)]
        is_distinct = len(set(self.names)) == len(self.names)
        is_complete = 0 < len(self.names) == len(self.values)
        if malformed or not is_distinct or not is_complete:
            raise ValueError(f"label names {self.names} with {len(self.values)} sets of values")

    def __len__(self):
        return len(self.names)

    @property
    def is_binary(self):
        """Return True if the stored values mean only foreground and background."""
        return all(values is None for values in self.values)

    def select(self, spec, default):
        """Return the map of the labels that a value of `--labels` names, in that order.

        spec:    names separated by commas; empty for `default`.
        default: tuple of names.
        Raises `UserError` for a name that the map does not have, and for a name given twice.
        """
        names = split_names(spec) or tuple(default)
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise found_expected(
                "--labels", f"{', '.join(unknown)!r}", f"some of {', '.join(self.names)}", "Choose from these names."
            )
        values = tuple(self.values[self.names.index(name)] for name in names)
        return replace(self, names=names, values=values, known=self.allowed)

    def without(self, value):
        """Return the same map for files in which a stored value must not occur."""
        values = tuple(kept if kept is None else kept - {value} for kept in self.values)
        return replace(self, values=values, known=self.known - {value}, exclusive=self.exclusive - {value})

    @property
    def allowed(self):
        """Return the frozenset of all stored values that may occur."""
        values_of_labels = [values for values in self.values if values is not None]
        return self.known.union(*values_of_labels)

    def masks(self, array, where):
        """Return the masks of an array of stored values: bool (K, *array.shape).

        where: the file, for the error.
        Raises `UserError` for fractions, see `mask_values`, and like `check` unless the map is binary.
        """
        if self.is_binary:
            mask = foreground(array, where, self.threshold)
            return np.stack([mask] * len(self))
        array = whole_values(array, where)
        self.check(np.unique(array), where)
        masks = [array > 0 if values is None else np.isin(array, sorted(values)) for values in self.values]
        return np.stack(masks)

    def check(self, found, where):
        """Raise `UserError` if a file holds values that are not `allowed`, or two that exclude each other.

        found: the distinct stored values of the file.
        where: the file, for the error.
        """
        found = set(whole_values(found, where).tolist())
        unknown = sorted(found - self.allowed)
        if unknown:
            shown = ", ".join(f"{value:g}" for value in unknown[:SHOWN_VALUES])
            more = f" and {len(unknown) - SHOWN_VALUES} more" if len(unknown) > SHOWN_VALUES else ""
            allowed = ", ".join(f"{value:g}" for value in sorted(self.allowed))
            raise found_expected(
                where,
                f"label values {shown}{more}",
                f"only the values {allowed}",
                self.hint or "Correct the file, or choose the layout and the labels that match it.",
            )
        both = sorted(self.exclusive & found)
        if len(both) > 1:
            raise found_expected(
                where,
                f"the label values {' and '.join(map(str, both))} in one file",
                "only one of them, because they are two codes for the same label",
                "Correct the file.",
            )


def split_names(spec):
    """Return the names in a value of `--labels`, a tuple, in lower case and in the normal form.

    Raises `UserError` for a malformed name and for a name given twice.
    """
    names = tuple(name_key(part.strip()) for part in _COMMAS.split(spec)) if spec.strip() else ()
    for name in names:
        if not is_label_name(name) or names.count(name) > 1:
            raise found_expected(
                "--labels",
                repr(spec),
                f"different names made of {LABEL_FORM}, separated by commas",
                "For example, write whole_tumour,tumour_core.",
            )
    return names

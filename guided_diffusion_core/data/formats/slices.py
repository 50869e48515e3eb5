"""The grammar of `--slices`: which axial slices of a volume are used."""

from dataclasses import dataclass

from guided_diffusion_core.errors import found_expected

GRAMMAR = "all, even, odd, brain, tumour or START:STOP:STEP, or several of these separated by commas"
_WORDS = ("all", "even", "odd", "brain", "tumour")


@dataclass(frozen=True)
class SliceFilter:
    """Conditions on an axial slice; a slice passes if all of them are true.

    words:  conditions from "all", "even", "odd", "brain", "tumour".
    ranges: builtin `slice` objects over the axial slice numbers, with Python's semantics.
    """

    words: tuple
    ranges: tuple

    @property
    def needs_brain(self):
        """Return True if the images must be read to find the slices."""
        return "brain" in self.words

    @property
    def needs_tumour(self):
        """Return True if the labels must be read to find the slices."""
        return "tumour" in self.words

    def select(self, depth, brain=None, tumour=None):
        """Return the numbers of the slices that pass, a tuple in rising order.

        depth:  number of axial slices.
        brain:  (depth,) bool, slices with at least one image voxel above zero; needed if `needs_brain`.
        tumour: (depth,) bool, slices with at least one labelled voxel; needed if `needs_tumour`.
        """
        kept = set(range(depth))
        for span in self.ranges:
            kept &= set(range(*span.indices(depth)))
        passes = {
            "all": lambda z: True,
            "even": lambda z: z % 2 == 0,
            "odd": lambda z: z % 2 == 1,
            "brain": lambda z: bool(brain[z]),
            "tumour": lambda z: bool(tumour[z]),
        }
        return tuple(z for z in sorted(kept) if all(passes[word](z) for word in self.words))


def parse_slices(spec):
    """Parse a `--slices` value such as "odd,tumour" or "brain,20:-20:3" into a `SliceFilter`.

    Raises `UserError` if the value does not follow the grammar.
    """
    words = []
    ranges = []
    for part in spec.split(","):
        condition = part.strip().lower()
        if condition in _WORDS:
            words.append(condition)
        else:
            ranges.append(_parse_range(condition, spec))
    return SliceFilter(tuple(words), tuple(ranges))


def require_all_slices(spec):
    """Raise `UserError` for a `--slices` value other than "all", which 2D images do not allow."""
    if spec != "all":
        raise found_expected("--slices", f"{spec!r} for 2D images", "all", "Remove the flag.")


def _parse_range(text, spec):
    try:
        bounds = [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError:
        bounds = []
    has_zero_step = len(bounds) == 3 and bounds[2] == 0
    if len(bounds) not in (2, 3) or has_zero_step:
        raise found_expected("--slices", repr(spec), GRAMMAR, "For example, write odd,tumour or 20:130:2.")
    return slice(*bounds)

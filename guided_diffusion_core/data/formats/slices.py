"""The grammar of `--slices`: which axial slices of a volume are used."""

from dataclasses import dataclass

from guided_diffusion_core.errors import found_expected

GRAMMAR = "all, even, odd, brain, tumour or START:STOP:STEP, several separated by commas"
_WORDS = ("all", "even", "odd", "brain", "tumour")


@dataclass(frozen=True)
class SliceFilter:
    """Conditions on an axial slice that must all hold.

    words:  conditions from "all", "even", "odd", "brain", "tumour".
    ranges: builtin slices over the axial slice numbers, Python's semantics.
    """

    words: tuple
    ranges: tuple

    @property
    def needs_brain(self):
        """Whether the images must be read to know the slices."""
        return "brain" in self.words

    @property
    def needs_tumour(self):
        """Whether the labels must be read to know the slices."""
        return "tumour" in self.words

    def select(self, depth, brain=None, tumour=None):
        """The slice numbers that pass, a rising tuple.

        depth:  number of axial slices.
        brain:  (depth,) bool, slices with some image voxel above zero; needed if `needs_brain`.
        tumour: (depth,) bool, slices with some labelled voxel; needed if `needs_tumour`.
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
    """Read a `--slices` value such as "odd,tumour" or "brain,20:-20:3" into a `SliceFilter`.

    Raises `UserError` if it is not of the grammar.
    """
    words = []
    ranges = []
    for condition in (part.strip().lower() for part in spec.split(",")):
        if condition in _WORDS:
            words.append(condition)
        else:
            ranges.append(_parse_range(condition, spec))
    return SliceFilter(tuple(words), tuple(ranges))


def require_all_slices(spec):
    """Refuse a `--slices` value for 2D images. Raises `UserError`."""
    if spec != "all":
        raise found_expected("--slices", f"{spec!r} for 2D images", "all", "Leave it out.")


def _parse_range(text, spec):
    try:
        bounds = [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError:
        bounds = []
    if len(bounds) not in (2, 3) or (len(bounds) == 3 and bounds[2] == 0):
        raise found_expected("--slices", repr(spec), GRAMMAR, "Write for example odd,tumour or 20:130:2.")
    return slice(*bounds)

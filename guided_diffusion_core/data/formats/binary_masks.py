"""Tell the foreground of a picture mask from its background. "Picture files" in docs/data.md lists the rules."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from guided_diffusion_core.data.formats.mask_values import foreground
from guided_diffusion_core.data.formats.rasters import require_black_zero
from guided_diffusion_core.errors import found_expected, join_names

HALF = 128  # a level is foreground from half of white on
WHITE = 255
WHITE_OF_16_BITS = 65535
MAX_LABEL_VALUES = 8  # a mask with soft edges has more distinct values or colours than this
NEARLY_GREY = 32  # red, green and blue that differ by less are a grey value that JPEG has tinted
BLACK = (0, 0, 0)
DARK = 96  # red, green and blue of a background are below this
BORDER = 255  # the index of PASCAL VOC for the borders of objects
BORDER_COLOUR = (224, 224, 192)
LABELS_ADVICE = "If they are labels, name them in labels.json. If they are soft edges, save only two values."


class Remark(NamedTuple):
    """Something in a readable file that deserves a warning; the fields are those of `check.examine.Problem`."""

    kind: str
    found: str
    expected: str
    mend: str


BLACK_DRAWING = Remark(
    "black mask",
    "a black picture that is transparent in places",
    "a mask in black and white",
    "What is visible counts as foreground. If this is an empty mask with a transparent margin, save it without "
    "transparency.",
)


class Levels(NamedTuple):
    """A binary mask as it is read.

    values:  (H, W) uint8, foreground from `HALF` on.
    highest: the largest value in the file.
    white:   the value that stands for foreground in a file like this.
    remarks: tuple of `Remark`.
    """

    values: np.ndarray
    highest: float = WHITE
    white: int = WHITE
    remarks: tuple = ()

    def foreground(self, where):
        """Return the foreground, bool (H, W). Raises `UserError` if there are only values below half."""
        mask = self.values >= HALF
        if self.highest > 0 and not mask.any():
            raise found_expected(
                where,
                f"mask values of at most {self.highest:g}",
                f"0 and {self.white}",
                f"Scale the mask so that its foreground is {self.white}.",
            )
        return mask


def levels_of(raster, where, plain, threshold):
    """Return the `Levels` of a `Raster`.

    where:     the file, for errors.
    plain:     for files of unknown origin: accept a mask that holds only 0 and 1, and refuse one of several values,
               which are labels rather than soft edges and would be merged.
    threshold: smallest value of the foreground in a floating-point mask; 0 refuses fractions.
    Raises `UserError` for a mask whose foreground is not clear.
    """
    require_black_zero(raster, where)
    alpha = raster.alpha
    if alpha is None or alpha.min() == alpha.max():
        return _levels_of_colours(raster, where, plain, threshold)
    # one colour where something is visible, and one where nothing is: the transparency is the mask
    if _is_one_colour(raster.colours[alpha > 0]) and _is_one_colour(raster.colours[alpha == 0]):
        levels = _two_values(alpha) or _grey_levels(alpha, where, plain, threshold)
        return levels if raster.colours.any() else levels._replace(remarks=(BLACK_DRAWING,))
    levels = _levels_of_colours(raster, where, plain, threshold)
    if (levels.values >= HALF)[alpha == 0].any():
        raise found_expected(
            where,
            "colours and a transparency that show different masks",
            "one mask, in the colours or in the transparency",
            "Save it as grey values without transparency.",
        )
    return levels


def _is_one_colour(pixels):
    """Return True if pixels, (N,) or (N, 3), are all the same."""
    return bool((pixels == pixels[:1]).all())


def _levels_of_colours(raster, where, plain, threshold):
    """Return the `Levels` of what a `Raster` shows without its transparency."""
    if raster.has_palette:
        palette = np.zeros((256, 3), np.uint8)
        given = np.reshape(raster.image.getpalette(), (-1, 3))
        palette[: len(given)] = given
        used = np.flatnonzero(np.bincount(raster.indices.ravel(), minlength=256))
        greys = np.unique(palette[used, 0])
        is_grey = (palette[used] == palette[used, :1]).all()
        if not is_grey or len(greys) < len(used):
            return _levels_of_indices(raster.indices, used, palette, where, plain)
    colours = raster.colours
    if colours.ndim == 2:
        return _grey_levels(colours, where, plain, threshold)
    red, green, blue = np.moveaxis(colours, 2, 0)
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return _grey_levels(colours[..., 0], where, plain, threshold)
    return _colour_levels(colours, raster.is_lossy, where, plain)


def _grey_levels(values, where, plain, threshold):
    """Return the `Levels` of grey values of any type, (H, W)."""
    kind = values.dtype.kind
    if kind == "b":
        return Levels(values * np.uint8(WHITE))
    if kind == "f":
        mask = foreground(values, where, threshold)
        if threshold:
            return Levels(mask * np.uint8(WHITE), mask.max())
        values = np.rint(values).astype(np.int64)
    if kind in "if" and values.min() < 0:
        found = f"mask values from {values.min()} to {values.max()}"
        raise found_expected(where, found, "values from 0", "Write the mask with 0 as its background.")
    if kind == "f" and values.max() == 1:
        return Levels(mask * np.uint8(WHITE))
    if plain:
        _refuse_labels(_few_values(values.ravel()), where)
    highest = values.max()
    if plain and highest == 1:
        return Levels(values.astype(np.uint8) * WHITE)
    if highest <= WHITE:
        return Levels(values.astype(np.uint8, copy=False), highest)
    two = _two_values(values)
    if two:
        return two
    white = WHITE_OF_16_BITS if highest <= WHITE_OF_16_BITS else np.iinfo(values.dtype).max
    # the 256 levels divide the range evenly: half of it becomes `HALF`
    return Levels(np.floor(values * (256 / (white + 1))).astype(np.uint8), highest, white)


def _two_values(values):
    """Return the `Levels` of values of which the larger is foreground; None if they are not two."""
    lowest = values.min()
    highest = values.max()
    mask = values == highest
    if lowest < highest and (mask | (values == lowest)).all():
        return Levels(mask * np.uint8(WHITE))
    return None


def _few_values(values):
    """Return the distinct values of (N,) in rising order; of more than `MAX_LABEL_VALUES` only some, one too many."""
    found = []
    rest = values
    while rest.size and len(found) <= MAX_LABEL_VALUES:
        found.append(rest[0])
        rest = rest[rest != rest[0]]  # much faster than sorting, because masks have few values
    return sorted(found)


def _refuse_labels(found, where):
    """Raise `UserError` for a mask whose few distinct values, of `_few_values`, look like labels."""
    if 2 < len(found) <= MAX_LABEL_VALUES:
        raise found_expected(where, f"mask values {', '.join(map(str, found))}", "0 and 255, or 0 and 1", LABELS_ADVICE)


def _levels_of_indices(indices, used, palette, where, plain):
    """Return the `Levels` of a palette's indices, (H, W) uint8.

    The background is the index whose colour is black, or 0 if it is not the only one. All other indices are foreground,
    except the borders of PASCAL VOC.
    """
    black = [index for index in used if tuple(palette[index]) == BLACK]
    background = black[0] if len(black) == 1 else 0
    objects = [index for index in used if index != background]
    remarks = []
    if BORDER in objects and (len(objects) > 1 or tuple(palette[BORDER]) == BORDER_COLOUR):
        objects.remove(BORDER)
        remarks.append(
            Remark(
                "border",
                f"the index {BORDER} in a palette, as PASCAL VOC marks the borders of objects",
                "only objects and background",
                "It counts as background. Write the mask without it if that is wrong.",
            )
        )
    if len(objects) > 1:
        found = f"a palette with the indices {join_names(used)}"
        if plain:
            raise found_expected(where, found, "two indices, for background and foreground", LABELS_ADVICE)
        remarks.append(_merged(found))
    levels = np.zeros(256, np.uint8)
    levels[objects] = WHITE
    return Levels(levels[indices], remarks=tuple(remarks))


def _colour_levels(colours, is_lossy, where, plain):
    """Return the `Levels` of colours, (H, W, 3).

    Few colours are told apart exactly: each one but black is foreground, or each one but the dark ones if there is no
    black. Many colours are soft edges: a pixel is foreground if red, green or blue is at least half.
    """
    colours = _in_eight_bits(colours)
    red, green, blue = np.moveaxis(colours, 2, 0)
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    if (highest - lowest).max() < NEARLY_GREY:
        return _grey_levels(np.asarray(Image.fromarray(colours).convert("L")), where, plain, 0.0)
    packed = red.astype(np.uint32) << 16 | green.astype(np.uint32) << 8 | blue
    found = _few_values(packed.ravel())
    is_exact = len(found) <= MAX_LABEL_VALUES and not is_lossy
    words = f"more than {MAX_LABEL_VALUES} colours, or those of a JPEG file"
    if is_exact:
        words = f"the colours {', '.join(_shown(colour) for colour in found)} in red, green, blue"
    if is_exact and plain and len(found) > 2:
        raise found_expected(where, words, "two, for background and foreground", LABELS_ADVICE)
    if not (highest < DARK).any():
        raise found_expected(where, words, "black as the background", "Save the mask in black and white.")
    if is_exact:
        background = highest == 0 if found[0] == 0 else highest < DARK
        highest = np.where(background, 0, WHITE).astype(np.uint8)
    remarks = (_merged(words),) if is_exact and len(found) > 2 else ()
    return Levels(highest, int(highest.max()), remarks=remarks)


def _in_eight_bits(colours):
    """Return colours (H, W, 3) of any depth as uint8; only 0 becomes 0."""
    if colours.dtype == np.uint8:
        return colours
    white = 1 if colours.dtype.kind == "f" else np.iinfo(colours.dtype).max
    levels = np.clip(np.floor(colours * (256 / (white + 1))), 0, WHITE).astype(np.uint8)
    return np.where(colours > 0, np.maximum(levels, 1), 0).astype(np.uint8)


def _shown(colour):
    return f"({colour >> 16}, {colour >> 8 & 255}, {colour & 255})"


def _merged(found):
    """Return the remark on several colours or indices that become one foreground."""
    return Remark(
        "coloured mask",
        found,
        "two, for background and foreground",
        "All but the background count as one foreground. Use a layout with labels if they are labels.",
    )

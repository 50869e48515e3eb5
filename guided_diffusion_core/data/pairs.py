"""Pictures with one mask file each: how they are paired, and the dataset that they make."""

import re
from dataclasses import dataclass

import numpy as np

from guided_diffusion_core.data.dataset import Case, Example, Truth, require_unique
from guided_diffusion_core.data.formats.images import image_size, read_masks, read_picture
from guided_diffusion_core.data.formats.transforms import RGB_RULE
from guided_diffusion_core.errors import UserError, found_expected, join_names

PICTURE_SUFFIX = re.compile(r"\.(jpg|jpeg|png|bmp|tif|tiff)$", re.IGNORECASE)
MASK_ENDING = re.compile(r"[_-](mask|masks|segmentation|seg|label|labels|gt|groundtruth)$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """An image (or None where only the truth is wanted) and its mask (or None), by case name."""

    name: str
    image: str | None
    mask: str | None


def picture_stem(file):
    """A picture's file name without its extension; None for other files."""
    return PICTURE_SUFFIX.sub("", file) if PICTURE_SUFFIX.search(file) else None


def pair_by_stem(images, masks, where):
    """Pair images and masks whose file names agree, a list of `Pair` by name; the unpaired ones have None.

    images, masks: lists of (file name without extension, path). A mask belongs to the image of its name, or
    else to that of its name without an ending such as _mask (`MASK_ENDING`); case does not count.
    where: the folder, for errors. Raises `UserError` for two images of one name, and for two masks of
    one image.
    """
    names = {}
    for name, path in images:
        names.setdefault(name.lower(), []).append((name, path))
    require_unique({found[0][0]: [path for _, path in found] for found in names.values()}, where)
    claims = {}
    alone = {}
    for name, path in masks:
        short = MASK_ENDING.sub("", name)
        key = name.lower() if name.lower() in names else short.lower()
        if key in names:
            claims.setdefault(key, []).append(path)
        else:
            alone.setdefault(key, []).append((short, path))
    doubled = {
        **{names[key][0][0]: paths for key, paths in claims.items()},
        **{found[0][0]: [path for _, path in found] for found in alone.values()},
    }
    require_unique(doubled, where)
    pairs = [Pair(name, path, claims.get(key, [None])[0]) for key, [(name, path), *_] in names.items()]
    pairs += [Pair(name, None, path) for [(name, path), *_] in alone.values()]
    return sorted(pairs, key=lambda pair: pair.name)


def require_paired(pairs, data_dir, layout):
    """Raise one `UserError` that lists all images without a mask and all masks without an image."""
    bare = [pair.name for pair in pairs if pair.mask is None]
    orphans = [pair.mask for pair in pairs if pair.image is None]
    images = len(pairs) - len(orphans)
    found = []
    if bare:
        found.append(f"{len(bare)} of {images} images without a mask ({join_names(bare)})")
    if orphans:
        found.append(f"{len(orphans)} masks without an image ({join_names(orphans)})")
    if found:
        raise UserError(
            f"--data_dir {str(data_dir)!r}: found {' and '.join(found)}; expected {layout}. "
            "Add what is missing or take the others out."
        )


class PairDataset:
    """Pictures with one mask file each (`Dataset`); every pair's sizes are checked here.

    Every picture has three channels: grey is repeated, so that grey and coloured ones can be mixed.

    pairs:           list of `Pair`. label_map: `LabelMap` of the masks.
    size:            side of the network input in pixels.
    need_masks:      False for label-free sampling: masks are neither asked for nor given.
    upstream_compat: masks as the original resizes them, bilinearly and then above zero.
    data_dir:        where the pairs come from; layout: what it should look like, for errors.
    Raises `UserError` for missing masks, masks of another shape and files that are no images.
    """

    in_channels = 3
    normalisation = RGB_RULE

    def __init__(self, pairs, label_map, size, need_masks, upstream_compat, data_dir, layout):
        self.size = size
        self.need_masks = need_masks
        self.upstream_compat = upstream_compat
        self.labels = label_map.names
        self._label_map = label_map
        if all(pair.image is None for pair in pairs):
            raise found_expected(f"--data_dir {str(data_dir)!r}", "masks but no image", layout, "Check the path.")
        if need_masks:
            require_paired(pairs, data_dir, layout)
        self._pairs = [pair for pair in pairs if pair.image is not None]
        self._shapes = [self._checked_shape(pair) for pair in self._pairs]

    def _checked_shape(self, pair):
        shape = image_size(pair.image)
        mask_shape = image_size(pair.mask) if self.need_masks else shape
        if mask_shape != shape:
            raise found_expected(
                pair.mask,
                f"a mask of {_pixels(mask_shape)}",
                f"{_pixels(shape)} as its image {pair.image}",
                "Use the mask of that image.",
            )
        return shape

    def __len__(self):
        return len(self._pairs)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        pair = self._pairs[index]
        mask = None
        if self.need_masks:
            mask = read_masks(pair.mask, self._label_map, self.size, self.upstream_compat).astype(np.float32)
        return Example(self._read(pair), mask, pair.name)

    def _read(self, pair):
        """The network input of a pair, (C, S, S) float32."""
        return read_picture(pair.image, self.size)

    def cases(self):
        """One case for each image."""
        together = zip(self._pairs, self._shapes)
        return [Case(pair.name, (index,), shape) for index, (pair, shape) in enumerate(together)]


def pair_truths(pairs, label_map, data_dir, layout):
    """The ground truth of every pair, a list of `Truth`; images may lack, but not masks of images."""
    require_paired([pair for pair in pairs if pair.image is not None], data_dir, layout)
    return [Truth(pair.name, pair.mask, label_map=label_map) for pair in pairs]


def _pixels(shape):
    return f"{shape[1]} x {shape[0]} pixels (width x height)"

"""Pair pictures with their mask files, and make a dataset of them."""

import re
from dataclasses import dataclass

import numpy as np

from guided_diffusion_core.data.dataset import Case, Example, Truth, require_unique
from guided_diffusion_core.data.formats.images import read_picture
from guided_diffusion_core.data.formats.masks import read_masks
from guided_diffusion_core.data.formats.rasters import UPRIGHT, read_header
from guided_diffusion_core.data.formats.transforms import RGB_RULE
from guided_diffusion_core.data.names import name_key
from guided_diffusion_core.errors import UserError, found_expected, join_names, report

PICTURE_SUFFIX = re.compile(r"\.(jpg|jpeg|png|bmp|tif|tiff)$", re.IGNORECASE)
MASK_ENDING = re.compile(r"[_-](mask|masks|segmentation|seg|label|labels|gt|groundtruth)$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """The files of one case.

    name:  name of the case.
    image: path of the image; None for a mask without an image.
    mask:  path of the mask; None for an image without a mask.
    """

    name: str
    image: str | None
    mask: str | None


def picture_stem(file):
    """Return the file name of a picture without its extension, or None for other files."""
    return PICTURE_SUFFIX.sub("", file) if PICTURE_SUFFIX.search(file) else None


def pair_by_stem(images, masks, where):
    """Pair images and masks by file name; return a list of `Pair` by name.

    An image without a mask gets the mask None, and a mask without an image gets the image None. A mask belongs to
    the image of the same name, otherwise to the image of its name without an ending such as _mask (`MASK_ENDING`).
    Names are compared without case and in one Unicode normal form (`walk.name_key`).

    images, masks: lists of (file name without extension, path).
    where:         the folder, for errors.
    Reports a `UserError` for two images of one name, and for two masks of one image.
    """
    named_images = {}  # key of a name -> list of (name, path)
    for name, path in images:
        named_images.setdefault(name_key(name), []).append((name, path))
    require_unique(_paths_by_name(named_images), where)
    paired = {}  # key of the name of an image -> list of (name of the image, path of a mask)
    unpaired = {}  # key of a name -> list of (name, path of a mask)
    for name, path in masks:
        short = MASK_ENDING.sub("", name)
        key = name_key(name) if name_key(name) in named_images else name_key(short)
        if key in named_images:
            image_name, _ = named_images[key][0]
            paired.setdefault(key, []).append((image_name, path))
        else:
            unpaired.setdefault(key, []).append((short, path))
    # the masks of one image, and masks of one name without an image
    require_unique(_paths_by_name(paired) | _paths_by_name(unpaired), where)
    pairs = []
    for key, found in named_images.items():
        name, image = found[0]
        mask = paired[key][0][1] if key in paired else None
        pairs.append(Pair(name, image, mask))
    for found in unpaired.values():
        name, mask = found[0]
        pairs.append(Pair(name, None, mask))
    return sorted(pairs, key=lambda pair: pair.name)


def _paths_by_name(files):
    """Return a dict of name -> paths of a dict of key -> list of (name, path); the first name of a key counts."""
    return {found[0][0]: [path for _, path in found] for found in files.values()}


def require_paired(pairs, data_dir, expected):
    """Report one `UserError` that lists all images without a mask and all masks without an image.

    expected: the expected layout in words.
    """
    without_mask = [pair.name for pair in pairs if pair.mask is None]
    without_image = [pair.mask for pair in pairs if pair.image is None]
    images = len(pairs) - len(without_image)
    found = []
    if without_mask:
        found.append(f"{len(without_mask)} of {images} images without a mask ({join_names(without_mask)})")
    if without_image:
        found.append(f"{len(without_image)} masks without an image ({join_names(without_image)})")
    if found:
        summary = (
            f"--data_dir {str(data_dir)!r}: found {' and '.join(found)}; expected {expected}. "
            "Add what is missing, or remove the other files."
        )
        report(UserError(summary), unpaired_errors(pairs))


def unpaired_errors(pairs, need_masks=True):
    """Return a `UserError` for each mask without an image and, if `need_masks`, for each image without a mask."""
    errors = []
    for pair in pairs:
        if pair.image is None:
            found = "a mask without an image"
            expected = "the image that it belongs to"
            errors.append(found_expected(pair.mask, found, expected, "Add the image, or remove the mask."))
        elif pair.mask is None and need_masks:
            found = "an image without a mask"
            expected = "a mask for every image"
            errors.append(found_expected(pair.image, found, expected, "Add the mask, or remove the image."))
    return errors


class PairDataset:
    """A dataset of pictures with one mask file each (`Dataset`). The headers of all files are read at once.

    Every picture has three channels: grey is repeated, so that grey and coloured pictures can be mixed. Pictures and
    masks with an EXIF orientation are turned upright.

    pairs:           list of `Pair`.
    label_map:       `LabelMap` of the masks.
    size:            side of the network input in pixels.
    need_masks:      False for sampling without labels: masks are neither required nor returned.
    upstream_compat: resize masks like the original: bilinearly, then take all that is above zero.
    data_dir:        the folder of the pairs, for errors.
    expected:        the expected layout in words, for errors.
    Raises `UserError` for missing masks, masks of another size than their image, and files that are not one image.
    """

    in_channels = 3
    normalisation = RGB_RULE

    def __init__(self, pairs, label_map, size, need_masks, upstream_compat, data_dir, expected):
        self.size = size
        self.need_masks = need_masks
        self.upstream_compat = upstream_compat
        self.labels = label_map.names
        self._label_map = label_map
        if all(pair.image is None for pair in pairs):
            error = found_expected(f"--data_dir {str(data_dir)!r}", "masks but no image", expected, "Check the path.")
            report(error, unpaired_errors(pairs))
        if need_masks:
            require_paired(pairs, data_dir, expected)
        self._pairs = [pair for pair in pairs if pair.image is not None]
        self._headers = [self._checked_header(pair) for pair in self._pairs]

    @property
    def remarks(self):
        """Return lines on what was done to the data, a tuple."""
        turned = [pair.name for pair, header in zip(self._pairs, self._headers) if header.orientation != UPRIGHT]
        if not turned:
            return ()
        return (f"EXIF orientation applied to {len(turned)} of {len(self)} pictures ({join_names(turned)})",)

    def _checked_header(self, pair):
        """Return the `Header` of a pair. Raises `UserError` if image and mask differ in size."""
        header = read_header(pair.image)
        if self.need_masks:
            require_same_size(pair.mask, read_header(pair.mask), pair.image, header)
        return header

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
        """Return the network input of a pair, (C, S, S) float32."""
        return read_picture(pair.image, self.size)

    def cases(self):
        """Return one `Case` for each image."""
        found = zip(self._pairs, self._headers)
        return [Case(pair.name, (index,), header.shape) for index, (pair, header) in enumerate(found)]


def pair_truths(pairs, label_map, data_dir, expected):
    """Return the ground truth of every pair, a list of `Truth`.

    expected: the expected layout in words, for errors.
    Raises `UserError` for an image without a mask. Masks without an image are accepted.
    """
    require_paired([pair for pair in pairs if pair.image is not None], data_dir, expected)
    return [Truth(pair.name, pair.mask, label_map=label_map) for pair in pairs]


def require_same_size(path, header, image_path, image_header):
    """Raise `UserError` if a mask, or a file with another channel, differs in size from its image.

    path, image_path:     the files.
    header, image_header: objects with a shape (height, width) and an orientation, upright, as `rasters.Header`.
    """
    if header.shape == image_header.shape:
        return
    orientations = header.orientation, image_header.orientation
    is_turned = orientations != (UPRIGHT, UPRIGHT)
    raise found_expected(
        path,
        _pixels(header),
        f"{_pixels(image_header)} like its image {image_path}",
        "Turn the pixels of both upright and remove the EXIF orientation, or draw the mask again on the turned picture."
        if is_turned
        else "Use the file that belongs to the image.",
    )


def _pixels(header):
    turned = "" if header.orientation == UPRIGHT else f", turned by the EXIF orientation {header.orientation}"
    return f"{header.shape[1]} x {header.shape[0]} pixels (width x height{turned})"

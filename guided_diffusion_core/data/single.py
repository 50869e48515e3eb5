"""Datasets of one case: an array in memory, or one file, by the rules of the layout that a network was trained on.

The intensity rule of the training (`Dataset.normalisation`) says what the case has to be: pictures have one rule,
volumes another. A rule that needs more than one array or file to be understood is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guided_diffusion_core.data.dataset import Case, Example
from guided_diffusion_core.data.formats.grids import Geometry
from guided_diffusion_core.data.formats.images import scale_array
from guided_diffusion_core.data.formats.labels import SINGLE, LabelMap, split_names
from guided_diffusion_core.data.formats.transforms import (
    RGB_RULE,
    ZSCORE_ALL_RULE,
    ZSCORE_RULE,
    zscore,
    zscore_all,
)
from guided_diffusion_core.data.formats.volumes import SUFFIXES, stem
from guided_diffusion_core.data.pairs import Pair, PairDataset, picture_stem
from guided_diffusion_core.data.volume_cases import CaseFiles, VolumeDataset, VolumeParts
from guided_diffusion_core.errors import found_expected

# Intensity rule -> function of the voxels of one channel, for the volumes that an array can hold.
VOLUME_SCALES = {ZSCORE_RULE: zscore, ZSCORE_ALL_RULE: zscore_all}
PICTURE_DTYPES = "uint8 or uint16 as in a file, or floating point from 0 to 1"
LABELS = "labels"  # the part of a volume's labels, which sampling does not read


def open_array(array, config, name):
    """Return the dataset of one array.

    array:  (H, W, C) for a network of pictures, C = 1 or 3; (D, H, W, C) for a network of volumes, D axial slices and
            the channels of the training.
    config: `Config` of the checkpoint. name: the case's name, which keys its noise.
    Raises `UserError` for an array that is not clearly what the network was trained on.
    """
    where = f"array {name!r}"
    if config.normalisation == RGB_RULE:
        return ArrayPicture(_checked_picture(array, where), config.model.image_size, label_names(config), name, where)
    if config.normalisation not in VOLUME_SCALES:
        raise found_expected(
            where,
            f"an array for a network whose intensities were scaled as {config.normalisation!r}",
            "a folder of the layout of the training",
            "Write the images to files and use segment_folder.",
        )
    channels = config.model.in_ch - config.model.mask_channels
    array = _checked_volume(array, channels, where)
    parts = tuple(f"channel {number}" for number in range(channels))
    scales = (VOLUME_SCALES[config.normalisation],) * channels
    files = ArrayFiles(name, "memory", dict.fromkeys(parts, where), array=array)
    return _volumes(files, VolumeParts(parts, LABELS, scales, config.normalisation), config)


def open_file(path, config):
    """Return the dataset of one picture or volume file; the case is named by the file, as in a folder of it.

    Raises `UserError` for a file of another kind than the network was trained on, and for a broken one.
    """
    path = Path(path)
    if not path.exists():
        raise found_expected(path, "no such file", "a picture, a volume or a folder", "Check the path.")
    picture = picture_stem(path.name)
    volume = path.name if path.is_dir() else stem(path.name)  # a folder is a DICOM series
    if config.normalisation == RGB_RULE and picture:
        pairs = [Pair(picture, str(path), None)]
        label_map = _label_map(config)
        return PairDataset(pairs, label_map, config.model.image_size, False, False, str(path.parent), "a picture")
    if config.normalisation == ZSCORE_ALL_RULE and volume:
        files = CaseFiles(volume, str(path.parent), {"image": str(path)})
        return _volumes(files, VolumeParts(("image",), LABELS, (zscore_all,), ZSCORE_ALL_RULE), config)
    kind = {RGB_RULE: "a picture", ZSCORE_ALL_RULE: f"a volume ({', '.join(SUFFIXES)})"}.get(
        config.normalisation, f"the folder of one case in the layout {config.data.data_name} of the training"
    )
    raise found_expected(path, "a file that the network was not trained for", kind, "Give such a one.")


def label_names(config):
    """Return the names of the masks of a network, in the order of its channels."""
    return tuple(split_names(config.data.labels)) if config.model.mask_channels > 1 else (SINGLE,)


class ArrayPicture:
    """A `Dataset` of one picture in memory; arguments as in `open_array`."""

    in_channels = 3
    normalisation = RGB_RULE
    remarks = ()

    def __init__(self, array, size, labels, name, where):
        self.labels = labels
        self._case = Case(name, (0,), array.shape[:2])
        self._image = scale_array(array, size, where)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        if index != 0:
            raise IndexError(f"example {index} of 1")
        return Example(self._image, None, self._case.name)

    def cases(self):
        """Return the one case."""
        return [self._case]


@dataclass(frozen=True)
class ArrayFiles(CaseFiles):
    """The channels of a volume in memory in place of files.

    array: (D, H, W, C).
    """

    array: Any = None

    def read(self, part):
        """Return the voxels of a channel, (X, Y, Z) = (H, W, D)."""
        return np.moveaxis(self.array[..., list(self.paths).index(part)], 0, 2)

    def geometry(self, part):
        """Return the shape of the array; an array has no place in millimetres."""
        depth, height, width, _ = self.array.shape
        return Geometry((height, width, depth), np.eye(4), is_placed=False)


def _volumes(files, parts, config):
    """Return the `VolumeDataset` of one case, all of its slices."""
    size = config.model.image_size
    return VolumeDataset(
        [files],
        parts,
        _label_map(config),
        size,
        config.data.slices,
        False,
        False,
        files.folder,
        orientation=config.data.orientation,
    )


def _label_map(config):
    """Return the `LabelMap` of the names alone: sampling reads no labels."""
    names = label_names(config)
    return LabelMap(names, (None,) * len(names))


def _checked_picture(array, where):
    array = np.asarray(array)
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise found_expected(
            where,
            f"the shape {array.shape}",
            "(H, W, C) with C = 3 for RGB or 1 for grey, because the network was trained on pictures",
            "Give one picture; add the axis of a grey one with array[..., None].",
        )
    if array.dtype.kind not in "uf":
        raise found_expected(where, f"the type {array.dtype}", PICTURE_DTYPES, "Convert the array.")
    return array


def _checked_volume(array, channels, where):
    array = np.asarray(array)
    if array.ndim != 4 or array.shape[3] != channels or 0 in array.shape:
        raise found_expected(
            where,
            f"the shape {array.shape}",
            f"(D, H, W, C) with C = {channels}, because the network was trained on slices of volumes, whose "
            "intensities are scaled over the whole volume",
            "Give a whole volume; add the axis of a single channel with array[..., None].",
        )
    if array.dtype.kind not in "iuf":
        raise found_expected(where, f"the type {array.dtype}", "whole or floating point numbers", "Convert the array.")
    return array

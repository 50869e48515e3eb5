"""The parts of every dataset: examples for the network, the cases that they belong to, and their ground truth."""

import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from guided_diffusion_core.data.formats.grids import Geometry, Turn
from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.errors import MAX_NAMES, UserError, found_expected, join_names, report
from guided_diffusion_core.system.processes import launched


@dataclass(frozen=True)
class Example:
    """One input of the network.

    image:       (C, S, S) float32, scaled by the dataset's rule (`Dataset.normalisation`).
    mask:        (K, S, S) float32 of 0 and 1, one channel for each label; None if the dataset was opened without
                 masks.
    case:        name of the case that the example belongs to.
    slice_index: axial slice of the volume, from 0; None for a 2D image.
    """

    image: np.ndarray
    mask: np.ndarray | None
    case: str
    slice_index: int | None = None

    @property
    def noise_key(self):
        """Return the name of the example on the noise tape: its case, or "case/slice" for a volume."""
        return self.case if self.slice_index is None else f"{self.case}/{self.slice_index}"


@dataclass(frozen=True)
class Case:
    """One image or volume, which gets one mask.

    name:    unique in its dataset, because the outputs are named by it.
    indices: indices of its examples in the dataset, in the order of `slices`.
    shape:   size of the source in pixels or voxels, (H, W) or (X, Y, Z).
    slices:  axial slices that are examples, in rising order, numbered as the network sees them; None for a 2D image.
    affine:  (4, 4) float64, voxels to millimetres; None for a 2D image.
    header:  nibabel header of the source; None for a 2D image and for a volume in another format.
    turn:    `Turn` from the axes of the source to those that the network sees, whose last one counts the slices.
    """

    name: str
    indices: tuple
    shape: tuple
    slices: tuple | None = None
    affine: np.ndarray | None = None
    header: Any = None
    turn: Turn = Turn()

    @property
    def seen_shape(self):
        """Return the size that the network sees, (H, W) or (X, Y, Z)."""
        return self.turn.shape(self.shape) if self.is_volume else self.shape

    @property
    def is_volume(self):
        """Return True if the case is a volume of slices."""
        return self.slices is not None


class Dataset(Protocol):
    """The interface of every dataset: examples by index, as numpy arrays.

    A dataset can be pickled, because loader processes get a copy of it.

    in_channels:   number of channels of an image.
    normalisation: the rule that turns intensities into network input, in words, for the checkpoint.
    labels:        names of the K masks of an example, in the order of their channels.
    remarks:       lines for the user on what was done to the data, a tuple.
    A dataset of volumes also has `orientation`, see `VolumeDataset`.
    """

    in_channels: int
    normalisation: str
    labels: tuple
    remarks: tuple

    def __len__(self):
        """Return the number of examples."""

    def __getitem__(self, index) -> Example:
        """Return the example at an index from 0 to len - 1. Raises IndexError for other indices."""

    def cases(self) -> list:
        """Return a list of all `Case`s. Each index belongs to exactly one of them."""


def say_remarks(dataset):
    """Print what was done to the data of a `Dataset` on stderr; of several processes the first one prints."""
    if launched().rank == 0:
        for line in dataset.remarks:
            print(line, file=sys.stderr)


@dataclass(frozen=True)
class Truth:
    """The ground truth of one case in the size of the source, for evaluation.

    name:        name of the case.
    path:        file of the ground truth, or folder of its slices.
    slices:      axial slices that are scored, numbered in `orientation`; None for a 2D image.
    label_map:   meaning of the values in the file.
    planes:      for a volume with one file per slice: pairs (slice, path) in rising order, up to the last slice of
                 the volume. None for a ground truth in one file.
    geometry:    `Geometry` of the source of a volume; None if it is unknown.
    orientation: orientation in which a volume is scored, such as "RAS"; None for that of the source.
    """

    name: str
    path: str
    slices: tuple | None = None
    label_map: LabelMap = LabelMap()
    planes: tuple | None = None
    geometry: Geometry | None = None
    orientation: str | None = None


def require_unique(paths_by_name, where):
    """Report a `UserError` that lists all names of several files, whose outputs would overwrite each other.

    paths_by_name: dict of case name -> list of paths.
    where:         the folder, for the error.
    """
    repeated = {name: paths for name, paths in paths_by_name.items() if len(paths) > 1}
    if not repeated:
        return
    expected = "unique names, because the outputs are named by them"
    each = []
    for name, paths in repeated.items():
        for path in paths[1:]:
            found = f"the name {name!r}, which {paths[0]} has too"
            each.append(found_expected(path, found, expected, "Rename one of the files, or remove it."))
    first_names = list(repeated.items())[:MAX_NAMES]
    lines = "\n".join(f"  {name}: {join_names(paths)}" for name, paths in first_names)
    summary = (
        f"{where}: found {len(repeated)} case names used more than once; expected {expected}. "
        f"Rename the files, or name the folder of a single set.\n{lines}"
    )
    report(UserError(summary), each)

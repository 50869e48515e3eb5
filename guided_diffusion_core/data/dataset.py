"""What every dataset is: examples for the network, and the cases that they belong to."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.errors import MAX_NAMES, UserError, found_expected, join_names, report


@dataclass(frozen=True)
class Example:
    """One input of the network.

    image:       (C, S, S) float32, scaled by the dataset's rule (`Dataset.normalisation`).
    mask:        (K, S, S) float32 of 0 and 1, a channel for each label, or None if the dataset was opened
                 without masks.
    case:        name of the case that it belongs to.
    slice_index: axial slice of the volume, from 0; None for a 2D image.
    """

    image: np.ndarray
    mask: np.ndarray | None
    case: str
    slice_index: int | None = None

    @property
    def noise_key(self):
        """Name of the example on the noise tape: the case's, or "case/slice" for a volume."""
        return self.case if self.slice_index is None else f"{self.case}/{self.slice_index}"


@dataclass(frozen=True)
class Case:
    """One image or volume, which gets one mask.

    name:    unique in its dataset; the outputs are named by it.
    indices: the dataset's indices of its examples, in the order of `slices`.
    shape:   native size in pixels or voxels, (H, W) or (X, Y, Z).
    slices:  axial slices that are examples, in rising order; None for a 2D image.
    affine:  (4, 4) float64, voxels to millimetres; None for a 2D image.
    header:  nibabel header of the source; None for a 2D image.
    """

    name: str
    indices: tuple
    shape: tuple
    slices: tuple | None = None
    affine: np.ndarray | None = None
    header: Any = None

    @property
    def is_volume(self):
        """Whether the case is a volume of slices."""
        return self.slices is not None


class Dataset(Protocol):
    """Examples by index, framework-free; picklable, so that loader processes can hold it.

    in_channels:   channels of an image.
    normalisation: the rule by which intensities become network input, for the checkpoint.
    labels:        names of the K masks of an example, in the order of their channels.
    """

    in_channels: int
    normalisation: str
    labels: tuple

    def __len__(self):
        """Number of examples."""

    def __getitem__(self, index) -> Example:
        """The example of an index from 0 to len - 1. Raises IndexError outside."""

    def cases(self) -> list:
        """All cases, as a list of `Case`; together they hold every index once."""


@dataclass(frozen=True)
class Truth:
    """The ground truth of one case at its own size, for evaluation.

    name:      the case's name.
    path:      file of the ground truth, or folder of its slices.
    slices:    axial slices that are scored; None for a 2D image.
    label_map: what the file's values mean.
    planes:    for a volume kept as one file per slice: pairs (slice, path) in rising order, the last one
               being the volume's last slice; None for a truth in one file.
    """

    name: str
    path: str
    slices: tuple | None = None
    label_map: LabelMap = LabelMap()
    planes: tuple | None = None


def require_unique(paths_by_name, where):
    """Refuse names that several files claim, whose outputs would overwrite each other.

    paths_by_name: dict case name -> list of paths. Reports a `UserError` naming all of them (`errors.report`).
    """
    doubled = {name: paths for name, paths in paths_by_name.items() if len(paths) > 1}
    if doubled:
        shown = list(doubled.items())[:MAX_NAMES]
        lines = "\n".join(f"  {name}: {join_names(paths)}" for name, paths in shown)
        each = [
            found_expected(
                path,
                f"the name {name!r}, which {paths[0]} has too",
                "unique names, because the outputs are named by them",
                "Rename one of the files, or take it out.",
            )
            for name, paths in doubled.items()
            for path in paths[1:]
        ]
        report(
            UserError(
                f"{where}: found {len(doubled)} case names used more than once; expected unique names, because "
                f"the outputs are named by them. Rename the files, or give the folder of one set.\n{lines}"
            ),
            each,
        )

"""The files that are scored: the ground truth of a case and its prediction, one mask per label.

`outputs.output_path` forms the names of the files; with several labels, the label is part of the name.
"""

from dataclasses import dataclass, replace

import numpy as np

from guided_diffusion_core.data.case_grids import turn_onto
from guided_diffusion_core.data.formats.grids import Geometry, Turn
from guided_diffusion_core.data.formats.volumes import read_geometry
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError, found_expected, join_names
from guided_diffusion_core.results.fusion import binarize
from guided_diffusion_core.results.outputs import (
    MASK,
    PROBABILITY,
    UNCERTAINTY,
    find_output,
    is_volume_file,
    read_output_with_geometry,
)
from guided_diffusion_core.system.files import require_folder


@dataclass(frozen=True)
class Scored:
    """The scored part of a case: the whole image, or the selected axial slices of a volume.

    truth, prediction:        bool (K, H, W), or (K, X, Y, Z) with Z selected slices; K labels.
    probability, uncertainty: float32 of the same shape, or None if there are no files.
    is_assumed:               see `is_assumed`.
    """

    truth: np.ndarray
    prediction: np.ndarray
    probability: np.ndarray | None
    uncertainty: np.ndarray | None
    is_assumed: bool = False


def label_names(truth):
    """Return the names of the masks of a `Truth`: a tuple of length K."""
    return truth.label_map.names


def spacing_of(truth, prediction_path, pixel_spacing):
    """Return the distance between pixels along each axis.

    An image has `pixel_spacing` twice. A volume has (3,) in mm, from the header of the truth, or from the header of
    the prediction if that of the truth is unknown; the axes are those in which the volume is scored.
    """
    if truth.slices is None:
        return pixel_spacing, pixel_spacing
    geometry = grid_of(truth).geometry or read_geometry(prediction_path)
    return geometry.turned(geometry.turn_to(truth.orientation)).spacing


def common_labels(truths):
    """Return the names of the labels, which all truths share. Raises `UserError` for an empty list."""
    if not truths:
        raise UserError("the ground truth: found no case; expected at least one. Check the path of the data.")
    return label_names(truths[0])


def find_predictions(folder, truths):
    """Find the files to score: case name -> (kind, paths by label). The probability is preferred to the mask.

    Raises `UserError` for a missing folder, and one for all cases that lack the file of a label.
    """
    labels = common_labels(truths)
    kinds = (PROBABILITY, MASK)
    require_outputs(folder, truths, kinds, labels)
    found = {}
    for truth in truths:
        for kind in kinds:
            paths = output_paths(folder, truth.name, kind, labels)
            if None not in paths:
                found[truth.name] = (kind, paths)
                break
    return found


def output_paths(folder, name, kind, labels):
    """Return the paths of a case's files of one kind, in the order of the labels; None for a missing file."""
    if len(labels) == 1:
        return [find_output(folder, name, kind)]
    return [find_output(folder, name, kind, label) for label in labels]


def require_outputs(folder, truths, kinds, labels):
    """Raise one `UserError` for all cases that have none of the `kinds` of files for all labels."""
    require_folder(folder, "predictions", "files written by medsegdiff sample")

    def is_complete(name, kind):
        return None not in output_paths(folder, name, kind, labels)

    missing = [truth.name for truth in truths if not any(is_complete(truth.name, kind) for kind in kinds)]
    if missing:
        raise UserError(
            f"predictions {str(folder)!r}: found none for {len(missing)} of {len(truths)} cases "
            f"({join_names(missing)}); expected one for each case of the ground truth. Sample the missing cases."
        )


@dataclass(frozen=True)
class Grid:
    """The pixels or voxels on which the files of a case are compared.

    where:       the file that has this grid, for errors.
    shape:       size of an image, (H, W), or of a volume, (X, Y, Z); None if it is not known yet.
    geometry:    `Geometry` of a volume; None for an image, and if only the shape is known.
    orientation: that in which the volume is compared; None for that of `geometry`.
    """

    where: str
    shape: tuple | None = None
    geometry: Geometry | None = None
    orientation: str | None = None


def grid_of(truth):
    """Return the `Grid` of a `Truth`. Raises `UserError` for a broken file."""
    geometry = truth.geometry
    if geometry is None and truth.slices is not None and truth.planes is None:
        geometry = read_geometry(truth.path)
    shape = geometry.shape if geometry else None
    return Grid(truth.path, shape, geometry, truth.orientation)


def output_grid(path, orientation):
    """Return the `Grid` of an output file; of a picture without its shape. Raises `UserError` for a broken file."""
    geometry = read_geometry(path) if is_volume_file(path) else None
    shape = geometry.shape if geometry else None
    return Grid(path, shape, geometry, orientation)


def read_scored(folder, truth, kind, paths, threshold):
    """Read the `Scored` part of a case.

    kind, paths: from `find_predictions`. threshold: smallest probability of a pixel of the mask.
    Raises `UserError` if a prediction has other pixels or voxels than the truth, and for broken files.
    """
    expected = read_truth_masks(truth)  # (K, H, W) or (K, X, Y, Z)
    grid = grid_of(truth)
    if grid.shape is None:
        grid = replace(grid, shape=expected.shape[1:])
    mask_threshold = truth.label_map.threshold
    values = selected(read_outputs(paths, grid, kind == MASK, mask_threshold), truth)
    if kind == PROBABILITY:
        probability = values
        prediction = binarize(values, threshold)
    else:
        probability = None
        prediction = values
    uncertainty_paths = output_paths(folder, truth.name, UNCERTAINTY, label_names(truth))
    uncertainty = None
    if None not in uncertainty_paths:
        uncertainty = selected(read_outputs(uncertainty_paths, grid), truth)
    assumed = grid.geometry is not None and any(is_assumed(read_geometry(path), grid.geometry) for path in paths)
    return Scored(selected(expected, truth), prediction, probability, uncertainty, assumed)


def read_outputs(paths, grid=None, is_mask=False, mask_threshold=0.0):
    """Read files of one case and stack them: (K, H, W), or (K, X, Y, Z) in the orientation of the grid.

    grid:                    `Grid` of the case; None for that of the first path.
    is_mask, mask_threshold: see `outputs.read_output_with_geometry`.
    A volume with the points of the grid in another order is brought onto it, exactly.
    Raises `UserError` for a file of another size or on another grid, and for a broken one.
    """
    grid = grid or Grid(paths[0])
    stacked = []
    for path in paths:
        values, geometry = read_output_with_geometry(path, is_mask, mask_threshold)
        if grid.shape is None:
            grid = replace(grid, shape=values.shape, geometry=geometry)
        stacked.append(_on_grid(values, geometry, path, grid))
    return np.stack(stacked)


def is_assumed(geometry, expected):
    """Return True if a prediction can only be assumed to have the voxels of the truth, because it has no place.

    Without a place in space, the same shape has to do: many programs write the identity for want of an affine.

    geometry: of the prediction. expected: of the truth.
    """
    return not geometry.has_place and geometry.shape == expected.shape and geometry.turn_onto(expected) is None


def _on_grid(values, geometry, path, grid):
    """Return the values of a file on a `Grid` with a shape. Raises `UserError` if they do not lie on it."""
    both_known = geometry is not None and grid.geometry is not None
    if both_known and sorted(geometry.shape) == sorted(grid.shape):
        turn = Turn()
        if not is_assumed(geometry, grid.geometry):
            turn = turn_onto(geometry, path, grid.geometry, grid.where)
        return turn.then(grid.geometry.turn_to(grid.orientation)).apply(values)
    if values.shape != tuple(grid.shape):
        raise found_expected(
            path,
            f"size {values.shape}",
            f"{tuple(grid.shape)} as in {grid.where}",
            "Sample the case again from the same data.",
        )
    return values


def selected(masks, truth):
    """Return the scored part of (K, H, W) or (K, X, Y, Z): the whole image, or the selected axial slices."""
    return masks if truth.slices is None else masks[..., list(truth.slices)]

"""The files that are scored: the ground truth of a case and its prediction, one mask per label.

`outputs.output_path` forms the names of the files; with several labels, the label is part of the name.
"""

from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes

from guided_diffusion_core.data.formats.volumes import read_geometry
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError, found_expected, join_names
from guided_diffusion_core.results.fusion import binarize
from guided_diffusion_core.results.outputs import MASK, PROBABILITY, UNCERTAINTY, find_output, read_output
from guided_diffusion_core.system.files import require_folder


@dataclass(frozen=True)
class Scored:
    """The scored part of a case: the whole image, or the selected axial slices of a volume.

    truth, prediction:        bool (K, H, W), or (K, X, Y, Z) with Z selected slices; K labels.
    probability, uncertainty: float32 of the same shape, or None if there are no files.
    """

    truth: np.ndarray
    prediction: np.ndarray
    probability: np.ndarray | None
    uncertainty: np.ndarray | None


def label_names(truth):
    """Return the names of the masks of a `Truth`: a tuple of length K."""
    return truth.label_map.names


def spacing_of(truth, prediction_path, pixel_spacing):
    """Return the distance between pixels along each axis.

    An image has `pixel_spacing` twice. A volume has (3,) in mm, from the header of the truth, or from the
    header of the prediction if the truth is one file per slice.
    """
    if truth.slices is None:
        return pixel_spacing, pixel_spacing
    path = truth.path if truth.planes is None else prediction_path
    return tuple(map(float, voxel_sizes(read_geometry(path).affine)))


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


def read_scored(folder, truth, kind, paths, threshold):
    """Read the `Scored` part of a case.

    kind, paths: from `find_predictions`. threshold: smallest probability of a pixel of the mask.
    Raises `UserError` if a prediction has another size than the truth, and for broken files.
    """
    expected = read_truth_masks(truth)  # (K, H, W) or (K, X, Y, Z)
    shape = expected.shape[1:]
    values = selected(read_outputs(paths, shape, truth.path), truth)
    if kind == PROBABILITY:
        probability = values
        prediction = binarize(values, threshold)
    else:
        probability = None
        prediction = values
    uncertainty_paths = output_paths(folder, truth.name, UNCERTAINTY, label_names(truth))
    uncertainty = None
    if None not in uncertainty_paths:
        uncertainty = selected(read_outputs(uncertainty_paths, shape, truth.path), truth)
    return Scored(selected(expected, truth), prediction, probability, uncertainty)


def read_outputs(paths, shape=None, reference=None):
    """Read files of one case and stack them: (K, *shape).

    shape: expected shape of each file, which is the shape of the file `reference`. None: that of the first path.
    Raises `UserError` for a file of another size, and for a broken one.
    """
    stacked = []
    for path in paths:
        stacked.append(read_output(path))
        if shape is None:
            shape = stacked[0].shape
            reference = path
        if stacked[-1].shape != tuple(shape):
            raise found_expected(
                path,
                f"size {stacked[-1].shape}",
                f"{tuple(shape)} as in {reference}",
                "Sample the case again from the same data.",
            )
    return np.stack(stacked)


def selected(masks, truth):
    """Return the scored part of (K, H, W) or (K, X, Y, Z): the whole image, or the selected axial slices."""
    return masks if truth.slices is None else masks[..., list(truth.slices)]

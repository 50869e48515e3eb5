"""The files that are scored: a case's truth and what was predicted for it, a mask per label.

A file of a case with one label has the case's name, one of several the label's name too
(`outputs.output_path`).
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
    """A case's scored part: all of an image, the selected axial slices of a volume.

    truth, prediction:        bool (K, H, W), or (K, X, Y, Z) with Z selected slices; K labels.
    probability, uncertainty: float32 of that shape, or None where the files lack.
    """

    truth: np.ndarray
    prediction: np.ndarray
    probability: np.ndarray | None
    uncertainty: np.ndarray | None


def label_names(truth):
    """Names of the masks of a `Truth`, a tuple of length K."""
    return truth.label_map.names


def spacing_of(truth, prediction_path, pixel_spacing):
    """Distances between pixels: of an image `pixel_spacing` twice; of a volume (3,) in mm, from the truth's
    header, or the prediction's if the truth is a file for each slice."""
    if truth.slices is None:
        return pixel_spacing, pixel_spacing
    path = truth.path if truth.planes is None else prediction_path
    return tuple(map(float, voxel_sizes(read_geometry(path).affine)))


def common_labels(truths):
    """The names of the labels, which all truths share. Raises `UserError` for an empty list."""
    if not truths:
        raise UserError("the ground truth: found no case; expected at least one. Check the path of the data.")
    return label_names(truths[0])


def find_predictions(folder, truths):
    """Case name -> (kind, paths of its labels) to score; the probability is preferred to the mask.

    Raises `UserError` for a missing folder, and one for all cases without a file for each label.
    """
    labels = common_labels(truths)
    found = {}
    require_outputs(folder, truths, (PROBABILITY, MASK), labels)
    for truth in truths:
        kinds = ((kind, output_paths(folder, truth.name, kind, labels)) for kind in (PROBABILITY, MASK))
        found[truth.name] = next((kind, paths) for kind, paths in kinds if None not in paths)
    return found


def output_paths(folder, name, kind, labels):
    """Paths of a case's files of a kind in the order of the labels; None where there is none."""
    return [find_output(folder, name, kind, label if len(labels) > 1 else None) for label in labels]


def require_outputs(folder, truths, kinds, labels):
    """Raise one `UserError` for all cases of which a folder has no complete kind among `kinds`."""
    require_folder(folder, "predictions", "files written by segmentation_sample.py")
    missing = [
        truth.name for truth in truths if all(None in output_paths(folder, truth.name, kind, labels) for kind in kinds)
    ]
    if missing:
        raise UserError(
            f"predictions {str(folder)!r}: found none for {len(missing)} of {len(truths)} cases "
            f"({join_names(missing)}); expected one for each case of the ground truth. Sample the missing cases."
        )


def read_scored(folder, truth, kind, paths, threshold):
    """The `Scored` part of a case; each file is read once.

    kind, paths: of `find_predictions`. threshold: probability from which on a pixel belongs to the mask.
    Raises `UserError` for a prediction of another size than the truth, and for broken files.
    """
    expected = read_truth_masks(truth)
    values = selected(read_outputs(paths, expected.shape[1:], truth.path), truth)
    spread = output_paths(folder, truth.name, UNCERTAINTY, label_names(truth))
    uncertainty = None
    if None not in spread:
        uncertainty = selected(read_outputs(spread, expected.shape[1:], truth.path), truth)
    from_probability = kind == PROBABILITY
    return Scored(
        selected(expected, truth),
        binarize(values, threshold) if from_probability else values,
        values if from_probability else None,
        uncertainty,
    )


def read_outputs(paths, shape=None, reference=None):
    """Written files of one case stacked, (K, *shape).

    shape: expected of each, that of the file `reference`; None: that of the first path.
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
    """The scored part of (K, H, W) or (K, X, Y, Z): the selected axial slices, or all of an image."""
    return masks if truth.slices is None else masks[..., list(truth.slices)]

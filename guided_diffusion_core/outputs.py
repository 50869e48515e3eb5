"""The files of a case's result: the only place that forms their names, writes them and reads them.

An image gets `<case>_mask.png` (8-bit, 0 and 255), `<case>_probability.tiff` and
`<case>_uncertainty.tiff` (32-bit float, deflate); a volume gets the three as `.nii.gz` (uint8 of 0
and 1, float32) on the grid of its source. All are lossless and of the case's native size.
"""
import io

import blobfile as bf
import numpy as np
from PIL import Image

from guided_diffusion_core.data.images import decode
from guided_diffusion_core.data.transforms import resize_linear
from guided_diffusion_core.data.volumes import Geometry, read_volume, volume_bytes
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.files import make_writable_folder, write_atomic
from guided_diffusion_core.fusion import binarize

MASK, PROBABILITY, UNCERTAINTY = "mask", "probability", "uncertainty"
_IMAGE_SUFFIX = {MASK: ".png", PROBABILITY: ".tiff", UNCERTAINTY: ".tiff"}
_VOLUME_SUFFIX = ".nii.gz"
ROUNDING = 1e-3  # by which resizing may leave the range


def output_path(out_dir, name, kind, is_volume, label=None):
    """Path of one file of a case.

    name: the case's. kind: `MASK`, `PROBABILITY` or `UNCERTAINTY`. label: name of the mask's label
    where a case has several; None where it has one mask.
    """
    suffix = _VOLUME_SUFFIX if is_volume else _IMAGE_SUFFIX[kind]
    return bf.join(str(out_dir), "_".join(part for part in (name, label, kind) if part) + suffix)


class CaseWriter:
    """Writer of the cases' files into one folder, which it makes, and proves to be writable, at once.

    out_dir: the folder. Raises `UserError` if it cannot be written.
    """

    def __init__(self, out_dir):
        self.out_dir = make_writable_folder(out_dir, "--out_dir")

    def write(self, case, probability, uncertainty, threshold):
        """Write the three files of a case; returns their paths as a dict by kind.

        Probability and uncertainty are resized to the native size first, and the mask is what then
        reaches the threshold. Slices of a volume that were not sampled are 0. Each file appears
        whole, the mask last: where it is, the case is complete.

        case:        `Case`.
        probability: (n, S, S) float32 in [0, 1], in the order of `case.indices`; n = 1 for an image.
        uncertainty: (n, S, S) float32, at least 0.
        threshold:   probability from which on a pixel belongs to the mask.
        Raises ValueError if n is not the case's number of examples, `UserError` if a file cannot be
        written.
        """
        probability, uncertainty = (_to_native(case, values) for values in (probability, uncertainty))
        mask = binarize(probability, threshold)
        if case.is_volume:
            # slices that were not sampled must stay empty whatever the threshold
            sampled = np.zeros(case.shape[2], bool)
            sampled[list(case.slices)] = True
            mask &= sampled
        paths = {}
        for kind, array in ((PROBABILITY, probability), (UNCERTAINTY, uncertainty), (MASK, mask)):
            paths[kind] = output_path(self.out_dir, case.name, kind, case.is_volume)
            write_atomic(paths[kind], _encode(case, array))
        return paths


def find_output(out_dir, name, kind, label=None):
    """Path of a case's file of a kind, of an image or a volume, or None if there is none."""
    paths = (output_path(out_dir, name, kind, is_volume, label) for is_volume in (False, True))
    return next((path for path in paths if bf.exists(path)), None)


def read_output(path):
    """A written probability or uncertainty as float32, or a mask as bool: (H, W) or (X, Y, Z).
    Raises `UserError` for a broken file."""
    if path.endswith(_VOLUME_SUFFIX):
        values = read_volume(path)
    else:
        values = np.asarray(decode(path))
    if values.dtype.kind != "f":
        return values > 0
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN, too
        raise found_expected(path, f"values from {low:g} to {high:g}", "probabilities or deviations from 0 to 1",
                             "Sample the case again.")
    return values.astype(np.float32)


def _to_native(case, values):
    """(n, S, S) -> native (H, W), or (X, Y, Z) with zeros where no slice was sampled."""
    values = np.asarray(values, np.float32)
    if len(values) != len(case.indices):
        raise ValueError(f"{len(values)} pictures for the {len(case.indices)} examples of case {case.name}")
    resized = resize_linear(values, case.shape[:2])  # (n, S, S) -> (n, H, W)
    if not case.is_volume:
        return resized[0]
    volume = np.zeros(case.shape, np.float32)
    volume[:, :, list(case.slices)] = np.moveaxis(resized, 0, 2)  # (n, X, Y) -> (X, Y, n)
    return volume


def _encode(case, array):
    """The bytes of a file: NIfTI of a volume; of an image PNG for bool and TIFF for float32."""
    if case.is_volume:
        stored = array.astype(np.uint8) if array.dtype == bool else array
        return volume_bytes(stored, Geometry(case.shape, case.affine, case.header))
    buffer = io.BytesIO()
    if array.dtype == bool:
        Image.fromarray(array.astype(np.uint8) * 255).save(buffer, "PNG")
    else:
        Image.fromarray(array).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()

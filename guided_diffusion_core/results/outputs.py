"""The files of a case's result: the only place that forms their names, writes them and reads them.

An image gets `<case>_mask.png` (8-bit, 0 and 255), `<case>_probability.tiff` and
`<case>_uncertainty.tiff` (32-bit float, deflate); a volume gets the three as `.nii.gz` (uint8 of 0
and 1, float32) on the grid of its source. All are lossless and of the case's native size. Masks of
several labels lie in one file for each, `<case>_<label>_mask.png` and so on. `<case>_overlay.png` shows
the outlines of the masks on the image; of a volume on the slice in which they are largest, x to the
right and y up.
"""

import io

import blobfile as bf
import numpy as np
from PIL import Image

from guided_diffusion_core.data.formats.images import decode
from guided_diffusion_core.data.formats.transforms import resize_linear
from guided_diffusion_core.data.formats.volumes import Geometry, read_volume, volume_bytes
from guided_diffusion_core.errors import UserError, found_expected, join_names
from guided_diffusion_core.results.fusion import binarize
from guided_diffusion_core.results.overlay import draw_overlay, shown_slice
from guided_diffusion_core.system.files import make_writable_folder, write_atomic

MASK = "mask"
PROBABILITY = "probability"
UNCERTAINTY = "uncertainty"
OVERLAY = "overlay"
_IMAGE_SUFFIX = {MASK: ".png", PROBABILITY: ".tiff", UNCERTAINTY: ".tiff", OVERLAY: ".png"}
_VOLUME_SUFFIX = ".nii.gz"
ROUNDING = 1e-3  # by which resizing may leave the range


def output_path(out_dir, name, kind, is_volume, label=None):
    """Path of one file of a case.

    name:  the case's. kind: `MASK`, `PROBABILITY`, `UNCERTAINTY` or `OVERLAY`, which is a picture of a
           volume too. label: that of the mask where there are several.
    """
    suffix = _VOLUME_SUFFIX if is_volume and kind != OVERLAY else _IMAGE_SUFFIX[kind]
    return bf.join(str(out_dir), "_".join(part for part in (name, label, kind) if part) + suffix)


class CaseWriter:
    """Writer of the cases' files into one folder, which it makes, and proves to be writable, at once.

    out_dir: the folder. labels: names of the mask's channels, K of them; one label stays out of the names.
    Raises `UserError` if the folder cannot be written.
    """

    def __init__(self, out_dir, labels=(MASK,)):
        self.out_dir = make_writable_folder(out_dir, "--out_dir")
        self.labels = tuple(labels)
        self._in_names = self.labels if len(self.labels) > 1 else (None,)

    def write(self, case, probability, uncertainty, threshold, pictures=None):
        """Write the files of a case; returns their paths, a dict by kind, of several labels by "LABEL_KIND".

        Probability and uncertainty are resized to the native size first, and the mask is what then
        reaches the threshold. Slices of a volume that were not sampled are 0. Each file appears
        whole, the masks last: where they are, the case is complete (`is_complete`).

        case:        `Case`.
        probability: (n, K, S, S) float32 in [0, 1], in the order of `case.indices`; n = 1 for an image.
                     For one label the axis K may be left out.
        uncertainty: as it, at least 0.
        threshold:   probability from which on a pixel belongs to the mask.
        pictures:    n pictures of the examples (`overlay.displayed`); None: no overlay is written.
        Raises ValueError if n is not the case's number of examples, `UserError` if a file cannot be
        written.
        """
        probability, uncertainty = (self._to_native(case, values) for values in (probability, uncertainty))
        masks = binarize(probability, threshold)
        if case.is_volume:
            # slices that were not sampled must stay empty whatever the threshold
            sampled = np.zeros(case.shape[2], bool)
            sampled[list(case.slices)] = True
            masks &= sampled
        paths = {}
        if pictures is not None:
            paths[OVERLAY] = output_path(self.out_dir, case.name, OVERLAY, case.is_volume)
            write_atomic(paths[OVERLAY], _png(_overlay(case, masks, pictures)))
        for kind, arrays in ((PROBABILITY, probability), (UNCERTAINTY, uncertainty), (MASK, masks)):
            for label, array in zip(self._in_names, arrays):
                path = output_path(self.out_dir, case.name, kind, case.is_volume, label)
                write_atomic(path, _encode(case, array))
                paths[f"{label}_{kind}" if label else kind] = path
        return paths

    def is_complete(self, case):
        """Whether all masks of a case, its last files, are there."""
        return all(bf.exists(path) for path in self._paths(case, (MASK,)))

    def require_unique_names(self, cases):
        """Refuse cases of which two would write one file, such as a_b with label c and a with label b_c;
        `UserError`."""
        owners = {}
        for case in cases:
            for path in self._paths(case, (MASK, PROBABILITY, UNCERTAINTY, OVERLAY)):
                owners.setdefault(path, set()).add(case.name)
        shared = {path: names for path, names in owners.items() if len(names) > 1}
        if shared:
            names = sorted(set.union(*shared.values()))
            raise UserError(
                f"--labels: found cases whose files would have one name, {join_names(sorted(shared))}, of "
                f"{join_names(names)}; expected a file for each. Rename these cases."
            )

    def _paths(self, case, kinds):
        return {
            output_path(self.out_dir, case.name, kind, case.is_volume, None if kind == OVERLAY else label)
            for kind in kinds
            for label in self._in_names
        }

    def _to_native(self, case, values):
        """(n, K, S, S) -> native (K, H, W), or (K, X, Y, Z) with zeros where no slice was sampled."""
        values = np.asarray(values, np.float32)
        if len(values) != len(case.indices):
            raise ValueError(f"{len(values)} pictures for the {len(case.indices)} examples of case {case.name}")
        values = values.reshape(len(values), len(self.labels), *values.shape[-2:])
        resized = resize_linear(values, case.shape[:2])  # (n, K, S, S) -> (n, K, H, W)
        if not case.is_volume:
            return resized[0]
        volumes = np.zeros((len(self.labels), *case.shape), np.float32)
        volumes[..., list(case.slices)] = np.moveaxis(resized, 0, -1)  # (n, K, X, Y) -> (K, X, Y, n)
        return volumes


def find_output(out_dir, name, kind, label=None):
    """Path of a case's file of a kind, of an image or a volume, or None if there is none.
    label: as of `output_path`."""
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
        raise found_expected(
            path,
            f"values from {low:g} to {high:g}",
            "probabilities or deviations from 0 to 1",
            "Sample the case again.",
        )
    return values.astype(np.float32)


def _overlay(case, masks, pictures):
    """The overlay of a case, uint8 (H, W, 3); masks: native."""
    if not case.is_volume:
        return draw_overlay(pictures[0], masks)
    shown = shown_slice(masks)
    place = len(case.slices) // 2 if shown is None else case.slices.index(shown)
    return np.rot90(draw_overlay(pictures[place], masks[..., case.slices[place]]))


def _encode(case, array):
    """The bytes of a file: NIfTI of a volume; of an image PNG for bool and TIFF for float32."""
    if case.is_volume:
        stored = array.astype(np.uint8) if array.dtype == bool else array
        return volume_bytes(stored, Geometry(case.shape, case.affine, case.header))
    if array.dtype == bool:
        return _png(array.astype(np.uint8) * 255)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG")
    return buffer.getvalue()

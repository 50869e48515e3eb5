"""The result files of a case. Only this module forms their names, writes them and reads them.

An image gets `<case>_mask.png` (8-bit, 0 and 255), `<case>_probability.tiff` and
`<case>_uncertainty.tiff` (32-bit float, deflate). A volume gets the three as `.nii.gz` (uint8 of 0
and 1, float32) on the grid of its source. All are lossless and have the case's native size. Masks of
several labels are in one file each, `<case>_<label>_mask.png` and so on. `<case>_overlay.png` shows
the outlines of the masks on the image; for a volume, on the slice in which they are largest, with x to
the right and y up. `<case>_uncertainty_map.png` next to it shows the uncertainty of the most uncertain
label in colours, on a scale from 0 to 0.5 that is the same in all cases.
"""

import io
import os

import blobfile as bf
import numpy as np
from PIL import Image

from guided_diffusion_core.data.formats import nifti
from guided_diffusion_core.data.formats.grids import Geometry
from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.formats.mask_values import foreground
from guided_diffusion_core.data.formats.masks import masks_of
from guided_diffusion_core.data.formats.rasters import read_raster
from guided_diffusion_core.data.formats.transforms import resize_linear
from guided_diffusion_core.data.formats.volumes import SUFFIXES, read_with_geometry, stem
from guided_diffusion_core.data.names import forms
from guided_diffusion_core.errors import UserError, found_expected, join_names
from guided_diffusion_core.results.display import draw_outlines, heat_map, largest_slice, resize_picture
from guided_diffusion_core.results.fusion import binarize
from guided_diffusion_core.system.files import longest_name, make_writable_folder, write_atomic

MASK = "mask"
PROBABILITY = "probability"
UNCERTAINTY = "uncertainty"
OVERLAY = "overlay"
UNCERTAINTY_MAP = "uncertainty_map"
PICTURES = (OVERLAY, UNCERTAINTY_MAP)  # one of all labels, and of a volume too
_IMAGE_SUFFIX = {MASK: ".png", PROBABILITY: ".tiff", UNCERTAINTY: ".tiff", **dict.fromkeys(PICTURES, ".png")}
_VOLUME_SUFFIX = ".nii.gz"
ROUNDING = 1e-3  # values may leave [0, 1] by this much when they are resized


def output_path(out_dir, name, kind, is_volume, label=None):
    """Return the path of one file of a case.

    name:  name of the case. kind: `MASK`, `PROBABILITY`, `UNCERTAINTY` or one of `PICTURES`.
    label: name of the mask if there are several, otherwise None.
    """
    suffix = _VOLUME_SUFFIX if is_volume and kind not in PICTURES else _IMAGE_SUFFIX[kind]
    stem = "_".join(part for part in (name, label, kind) if part)
    return bf.join(str(out_dir), stem + suffix)


def to_native(case, values, labels):
    """Resize (n, K, S, S) to the native (K, H, W), or to (K, X, Y, Z) with zeros in slices not sampled.

    The axes of a volume are those of its source, from which `case.turn` leads to those of the slices.

    case: `Case` with n examples. labels: K; the axis may be left out if K is 1.
    Raises ValueError if n is not the case's number of examples.
    """
    values = np.asarray(values, np.float32)
    if len(values) != len(case.indices):
        raise ValueError(f"{len(values)} pictures for the {len(case.indices)} examples of case {case.name}")
    values = values.reshape(len(values), labels, *values.shape[-2:])  # adds K if it is left out
    resized = resize_linear(values, case.seen_shape[:2])  # (n, K, S, S) -> (n, K, H, W)
    if not case.is_volume:
        return resized[0]
    volumes = np.zeros((labels, *case.seen_shape), np.float32)
    volumes[..., list(case.slices)] = np.moveaxis(resized, 0, -1)  # (n, K, X, Y) -> (K, X, Y, n)
    return case.turn.undo(volumes)


def native_masks(case, probability, threshold):
    """Return the masks of a native probability (K, ...): bool, empty in slices that were not sampled."""
    masks = binarize(probability, threshold)
    if case.is_volume:
        # Slices that were not sampled stay empty, even at the threshold 0.
        sampled = np.zeros(case.seen_shape, bool)
        sampled[..., list(case.slices)] = True
        masks &= case.turn.undo(sampled)  # (K, X, Y, Z) & (X, Y, Z)
    return masks


class CaseWriter:
    """Writes the files of cases into one folder. The folder is made, and checked to be writable, at once.

    out_dir: the folder. labels: names of the mask's K channels; a single label is left out of the file names.
    Raises `UserError` if the folder cannot be written.
    """

    def __init__(self, out_dir, labels=(MASK,)):
        self.out_dir = make_writable_folder(out_dir, "--out_dir")
        self.labels = tuple(labels)
        self._in_names = _in_names(self.labels)

    def write(self, case, probability, uncertainty, threshold, pictures=None):
        """Write the files of a case and return their paths: a dict by kind, for several labels by "LABEL_KIND".

        Probability and uncertainty are first resized to the native size; the mask is where the resized
        probability is at least the threshold. Slices of a volume that were not sampled are 0. Each
        file appears whole. The masks come last, so a case with masks is complete (`is_complete`).

        case:        `Case`.
        probability: (n, K, S, S) float32 in [0, 1], in the order of `case.indices`; n = 1 for an image.
                     The axis K may be left out if there is one label.
        uncertainty: the same shape, at least 0.
        threshold:   smallest probability of a pixel of the mask.
        pictures:    n pictures of the examples (`display.as_picture`), or None for none of `PICTURES`.
        Raises ValueError if n is not the case's number of examples, `UserError` if a file cannot be
        written.
        """
        probability = to_native(case, probability, len(self.labels))
        uncertainty = to_native(case, uncertainty, len(self.labels))
        masks = native_masks(case, probability, threshold)
        paths = {}
        if pictures is not None:
            for kind, drawn in zip(PICTURES, _drawn(case, masks, uncertainty, pictures)):
                paths[kind] = output_path(self.out_dir, case.name, kind, case.is_volume)
                write_atomic(paths[kind], _png(drawn))
        for kind, arrays in ((PROBABILITY, probability), (UNCERTAINTY, uncertainty), (MASK, masks)):
            for label, array in zip(self._in_names, arrays):
                path = output_path(self.out_dir, case.name, kind, case.is_volume, label)
                write_atomic(path, _encode(case, array))
                paths[f"{label}_{kind}" if label else kind] = path
        return paths

    def is_complete(self, case):
        """Return True if all masks of a case exist; they are written last."""
        return all(bf.exists(path) for path in _paths(self.out_dir, case, self._in_names, (MASK,)))


def require_names(out_dir, cases, labels):
    """Raise `UserError` if the files of some cases cannot have their names.

    Two cases must not write the same file: case "a_b" with the label "c", and case "a" with the label "b_c", would. And
    no name may be longer than the file system takes.

    out_dir: folder of the files, which need not exist. labels: names of the masks.
    """
    owners = {}  # path -> names of the cases that would write it
    for case in cases:
        for path in _paths(out_dir, case, _in_names(labels), (MASK, PROBABILITY, UNCERTAINTY, *PICTURES)):
            owners.setdefault(path, set()).add(case.name)
    shared = {path: names for path, names in owners.items() if len(names) > 1}
    if shared:
        names = sorted(set.union(*shared.values()))
        raise UserError(
            f"--labels: found file names that several cases share, {join_names(sorted(shared))}, for "
            f"{join_names(names)}; expected a file for each. Rename these cases."
        )
    _require_short_names(out_dir, owners)


def _require_short_names(out_dir, owners):
    """Raise `UserError` for names that the file system of a folder cannot hold.

    owners: dict of path -> names of the cases that would write it.
    """
    allowed = longest_name(out_dir)
    lengths = {path: len(os.fsencode(bf.basename(path))) for path in owners}
    long = [path for path in owners if lengths[path] > allowed]
    if long:
        worst = max(long, key=lengths.get)
        names = sorted(set.union(*(owners[path] for path in long)))
        raise found_expected(
            f"--out_dir {out_dir}",
            f"names too long for its file system, such as {lengths[worst]} bytes of {bf.basename(worst)}, for "
            f"{len(names)} cases ({join_names(names)})",
            f"at most {allowed} bytes, with the names of case, label and kind",
            "Give the files of these cases shorter names.",
        )


def _in_names(labels):
    """Return the labels in the names of files: none for a single label."""
    return tuple(labels) if len(labels) > 1 else (None,)


def _paths(out_dir, case, in_names, kinds):
    """Return the paths of the files of a case, a set."""
    paths = set()
    for kind in kinds:
        labels = (None,) if kind in PICTURES else in_names
        paths.update(output_path(out_dir, case.name, kind, case.is_volume, label) for label in labels)
    return paths


def find_output(out_dir, name, kind, label=None):
    """Return the path of a case's file, of an image or a volume, or None if there is none.

    name, kind, label: see `output_path`. A volume of other software may be in any format that is read.
    """
    for form in forms(name):  # another system may have copied the files under another form of their names
        image = output_path(out_dir, form, kind, False, label)
        volume = output_path(out_dir, form, kind, True, label)
        others = [volume.removesuffix(_VOLUME_SUFFIX) + suffix for suffix in SUFFIXES if suffix != _VOLUME_SUFFIX]
        for path in (image, volume, *others):
            if bf.exists(path):
                return path
    return None


def remove_outputs(folder):
    """Remove the files of all cases in a folder (Path) of this machine."""
    endings = {f"_{kind}{suffix}" for kind, suffix in _IMAGE_SUFFIX.items()}
    endings |= {f"_{kind}{_VOLUME_SUFFIX}" for kind in (MASK, PROBABILITY, UNCERTAINTY)}
    for path in folder.iterdir():
        if path.is_file() and path.name.endswith(tuple(endings)):
            path.unlink()


def is_volume_file(path):
    """Return True if an output file other than an overlay belongs to a volume."""
    return stem(path) is not None


def read_output(path):
    """Read a probability or an uncertainty as float32, or a mask as bool: (H, W) or (X, Y, Z).

    Raises `UserError` for a broken file and for values outside [0, 1].
    """
    return read_output_with_geometry(path)[0]


def read_output_with_geometry(path, is_mask=False, mask_threshold=0.0):
    """Return (values, `Geometry`) of an output, None for a picture; values and errors are those of `read_output`.

    is_mask:        the file is a mask, which some software writes as floating point.
    mask_threshold: `DataConfig.mask_threshold`, for a mask with fractions.
    """
    if is_volume_file(path):
        values, geometry = read_with_geometry(path)
    else:
        return _read_picture_output(path, is_mask, mask_threshold), None
    if is_mask or values.dtype.kind != "f":
        return foreground(values, path, mask_threshold), geometry
    return _probability(path, values), geometry


def _read_picture_output(path, is_mask, mask_threshold):
    raster = read_raster(path)
    if is_mask or raster.values.dtype.kind != "f":
        return masks_of(raster, path, LabelMap(plain=True, threshold=mask_threshold))[0]
    return _probability(path, raster.values)


def _probability(path, values):
    """Return floating point values as float32. Raises `UserError` for values outside [0, 1]."""
    low = float(values.min(initial=np.inf))
    high = float(values.max(initial=-np.inf))
    in_range = low >= -ROUNDING and high <= 1 + ROUNDING  # False for NaN too
    if values.size and not in_range:
        raise found_expected(
            path,
            f"values from {low:g} to {high:g}",
            "probabilities or deviations from 0 to 1",
            "Sample the case again.",
        )
    return values.astype(np.float32)


def _drawn(case, masks, uncertainty, pictures):
    """Draw the `PICTURES` of a case from its native masks and uncertainty (K, ...): uint8 (H, W, 3) each."""
    uncertainty = uncertainty.max(axis=0)  # the most uncertain label of each pixel
    if not case.is_volume:
        return draw_outlines(resize_picture(pictures[0], masks.shape[1:]), masks), heat_map(uncertainty)
    masks = case.turn.apply(masks)
    slice_index = largest_slice(masks)
    place = len(case.slices) // 2 if slice_index is None else case.slices.index(slice_index)
    plane = masks[..., case.slices[place]]  # (K, X, Y)
    outlined = draw_outlines(resize_picture(pictures[place], plane.shape[1:]), plane)
    heat = heat_map(case.turn.apply(uncertainty[None])[0, ..., case.slices[place]])
    return np.rot90(outlined), np.rot90(heat)  # (X, Y, 3) -> (Y, X, 3) with y up


def _encode(case, array):
    """Return the bytes of a file: NIfTI for a volume; for an image PNG from bool and TIFF from float32."""
    if case.is_volume:
        stored = array.astype(np.uint8) if array.dtype == bool else array
        return nifti.encode(stored, Geometry(case.shape, case.affine, case.header))
    if array.dtype == bool:
        return _png(array.astype(np.uint8) * 255)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG")
    return buffer.getvalue()

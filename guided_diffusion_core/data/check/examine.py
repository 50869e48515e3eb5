"""Examine one file of a data set: read it once, measure its content, and find its problems."""

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from guided_diffusion_core.data.formats.grids import Geometry, require_place
from guided_diffusion_core.data.formats.masks import masks_of, remarks_on
from guided_diffusion_core.data.formats.rasters import UPRIGHT, read_header, read_raster
from guided_diffusion_core.data.formats.transforms import FINITE_ADVICE, ZSCORE_RULE
from guided_diffusion_core.data.formats.volumes import is_read_from_disk, is_volume, read_geometry, read_with_geometry
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system.files import read_once

ERROR = "error"
WARNING = "warning"
SAMPLE_SIZE = 2000  # intensities that a file contributes to the histogram


@dataclass(frozen=True)
class Problem:
    """A problem of a data set.

    severity: `ERROR` if training, sampling or scoring would fail or give wrong results, otherwise `WARNING`.
    kind:     one or two words; problems are counted by kind.
    file:     the file with the problem.
    found, expected, mend: as in `errors.found_expected`; `mend` says how to fix the problem.
    """

    severity: str
    kind: str
    file: str
    found: str
    expected: str
    mend: str

    def __str__(self):
        if not self.expected:  # an error in a form of its own, see `as_problem`
            return self.found
        return f"{self.file}: found {self.found}; expected {self.expected}. {self.mend}"


@dataclass
class Examined:
    """The content of a file, as far as it could be read.

    file:     `ListedFile`.
    problems: list of `Problem`.
    shape:    shape of the stored array without channels: (H, W), (X, Y) or (X, Y, Z).
    orientation: the EXIF orientation that was applied to a picture.
    geometry: `Geometry` of a volume or a slice of one.
    digest:   hash of the decoded values as float32, so that a copy with another compression has the same one.
    range:    smallest and largest value.
    sample:   some of the intensities that the normalisation uses, float32.
    moments:  (number, mean, standard deviation) of all intensities that the normalisation uses.
    shares:   dict of label name -> share of the pixels that it covers.
    """

    file: object
    problems: list = field(default_factory=list)
    shape: tuple | None = None
    orientation: int = UPRIGHT
    geometry: Geometry | None = None
    digest: str = ""
    range: tuple | None = None
    sample: np.ndarray | None = None
    moments: tuple | None = None
    shares: dict | None = None

    @property
    def spacing(self):
        """Return the millimetres along the axes of a volume; None for a picture."""
        return self.geometry.spacing if self.geometry else None

    def add(self, severity, kind, found, expected, mend):
        """Add a problem of this file."""
        self.problems.append(Problem(severity, kind, self.file.path, found, expected, mend))


def as_problem(error, kind, file="", severity=ERROR):
    """Return a `UserError` as a `Problem`.

    file: the file, if the error does not say which one.
    """
    where, found, expected, mend = error.parts or (file, str(error), "", "")
    return Problem(severity, kind, where, found, expected, mend)


def examine(file, normalisation):
    """Read a `ListedFile` and return its content as `Examined`. Problems are recorded there and not raised.

    normalisation: the rule that will scale the images, in words.
    """
    result = Examined(file)
    try:
        with nullcontext() if is_read_from_disk(file.path) else read_once(file.path):
            if not is_volume(file.path):
                _examine_picture(result, normalisation)
            else:
                _examine_volume(result, normalisation)
    except UserError as error:
        kind = "labels" if file.label_map else "values"
        if not result.digest:
            kind = "unreadable"
        result.problems.append(as_problem(error, kind, file.path))
    return result


def _examine_picture(result, normalisation):
    """Examine a picture or a picture mask."""
    file = result.file
    header = read_header(file.path)  # training reads it first: a file may be of another size, and broken too
    result.shape = tuple(header.shape)
    result.orientation = header.orientation
    raster = read_raster(file.path)
    result.digest = _digest(raster.values)
    if header.orientation != UPRIGHT:
        result.add(
            WARNING,
            "orientation",
            f"an EXIF orientation of {header.orientation}, which is applied, but which other programs may ignore",
            "pixels that are stored upright",
            "Make sure that image and mask overlap. To be rid of the question, turn the pixels and remove the tag.",
        )
    if file.label_map is None:
        _examine_image(result, raster.values, normalisation)
        if file.require:
            file.require(raster, file.path)
        return
    masks = masks_of(raster, file.path, file.label_map)
    _measure_masks(result, masks)
    for remark in remarks_on(raster, file.path, file.label_map):
        result.add(WARNING, *remark)


def _examine_volume(result, normalisation):
    """Examine a volume of an image or of labels."""
    file = result.file
    values = _read_volume(result)
    result.digest = _digest(values)
    if file.label_map is None:
        _examine_image(result, values, normalisation)
        return
    _measure_masks(result, file.label_map.masks(values, file.path))
    # A binary map may still know the codes of its layout, for example if only whole_tumour was chosen. Training then
    # takes any other code as foreground too.
    if file.label_map.is_binary and len(file.label_map.allowed) > 1:
        try:
            file.label_map.check(np.unique(values), file.path)
        except UserError as error:
            result.problems.append(as_problem(error, "labels", severity=WARNING))


def _read_volume(result):
    """Return the stored values of a volume or a slice; record its grid and what is wrong with it."""
    path = result.file.path
    is_slice = result.file.place is not None
    if is_read_from_disk(path):
        # training compares the grids of such files before it reads their voxels
        geometry = read_geometry(path)
        result.geometry = geometry
        result.shape = geometry.shape
    values, geometry = read_with_geometry(path, of_slice=is_slice)
    if is_slice:
        values = values[:, :, 0]
    result.shape = tuple(values.shape)
    result.geometry = geometry
    try:
        require_place(path, geometry)
    except UserError as error:
        result.problems.append(as_problem(error, "affine"))
    return values


def _digest(values):
    """Return a hash of values and shape, the same for all types that store the same numbers."""
    content = np.ascontiguousarray(values, np.float32)
    shape = repr(values.shape).encode()[:64]  # BLAKE2b accepts keys of at most 64 bytes
    return hashlib.blake2b(content, digest_size=16, key=shape).hexdigest()


def _examine_image(result, values, normalisation):
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        bad = int(values.size - finite.sum())
        if bad and not result.file.require:
            found = f"{bad} values that are not finite"
            result.add(ERROR, "not finite", found, "finite numbers", FINITE_ADVICE)
        values = values[finite]
    if not values.size:
        return
    low = float(values.min())
    high = float(values.max())
    result.range = (low, high)
    if low == high and result.file.place is None:  # single slices may be empty: the outermost ones usually are
        result.add(
            WARNING,
            "constant",
            f"the value {low:g} everywhere",
            "a picture of something",
            "Replace the file, or remove the case.",
        )
    only_above_zero = normalisation == ZSCORE_RULE
    if only_above_zero and low < 0:
        percent = 100 * float((values < 0).mean())
        result.add(
            WARNING,
            "negative",
            f"{percent:.3g}% of the values below 0, down to {low:g}",
            "intensities from 0, because all values up to 0 count as background",
            "Shift the intensities, or use a layout that scales all of them.",
        )
    used = values[values > 0] if only_above_zero else values.reshape(-1)
    if used.size:
        mean = float(np.mean(used, dtype=np.float64))
        deviation = float(np.std(used, dtype=np.float64))
        result.moments = (int(used.size), mean, deviation)
        step = max(1, used.size // SAMPLE_SIZE)
        result.sample = np.asarray(used[::step], np.float32)


def _measure_masks(result, masks):
    """Record the share of each mask in the picture or volume."""
    result.shares = {name: float(mask.mean()) for name, mask in zip(result.file.label_map.names, masks)}

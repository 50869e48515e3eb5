"""What one file of a data set holds: read once, measured, and compared with what training expects."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from guided_diffusion_core.data.formats.images import decode, read_masks, stored_values
from guided_diffusion_core.data.formats.transforms import ZSCORE_RULE
from guided_diffusion_core.data.formats.volumes import read_with_geometry, stem
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system.files import read_once

ERROR = "error"
WARNING = "warning"
SAMPLE = 2000  # intensities that a file gives to the histogram
ORIENTATION = 274  # a tag of EXIF


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set.

    severity: `ERROR`, which training, sampling or scoring would refuse or be spoilt by, or `WARNING`.
    kind:     one or two words, by which problems are counted.
    """

    severity: str
    kind: str
    file: str
    found: str
    expected: str
    mend: str

    def __str__(self):
        return f"{self.file}: found {self.found}; expected {self.expected}. {self.mend}"


@dataclass
class Examined:
    """What a file was found to hold; all but the first two is unknown of one that cannot be read.

    shape:   of the stored array, without channels: (H, W), (X, Y) or (X, Y, Z).
    affine:  (4, 4) of a NIfTI file. spacing: millimetres along its axes.
    digest:  of the decoded values as float32, so that a copy in another compression is found too.
    range:   smallest and largest value. sample: some intensities that the normalisation looks at.
    moments: (number, mean, standard deviation) of all of these.
    shares:  label name -> share of the pixels that it covers.
    """

    file: object
    problems: list = field(default_factory=list)
    shape: tuple | None = None
    affine: np.ndarray | None = None
    spacing: tuple | None = None
    digest: str = ""
    range: tuple | None = None
    sample: np.ndarray | None = None
    moments: tuple | None = None
    shares: dict | None = None

    def add(self, severity, kind, found, expected, mend):
        """Add a problem of this file."""
        self.problems.append(Problem(severity, kind, self.file.path, found, expected, mend))


def as_problem(error, kind, file="", severity=ERROR):
    """The `Problem` that a `UserError` speaks of."""
    where, found, expected, mend = error.parts or (file, str(error), "a file as the layout wants it", "")
    return Problem(severity, kind, where, found, expected, mend)


def examine(file, normalisation):
    """Read a `ListedFile` and return what it holds, an `Examined`; raises nothing for what is wrong with it.

    normalisation: the rule by which images will be scaled.
    """
    result = Examined(file)
    try:
        with read_once(file.path):
            values = _read(result)
            if file.label_map is None:
                _examine_image(result, values, normalisation)
            else:
                _examine_labels(result, values)
    except UserError as error:
        result.problems.append(as_problem(error, "unreadable" if result.shape is None else "labels", file.path))
    return result


def _read(result):
    """The stored values of a file; notes shape, place and digest."""
    path = result.file.path
    if stem(path) is None:
        values = stored_values(path)
        result.shape = tuple(values.shape[:2])
        turned = decode(path).getexif().get(ORIENTATION, 1)
        if turned != 1:
            result.add(
                WARNING,
                "orientation",
                f"an EXIF orientation of {turned}, which readers differ on",
                "pixels stored upright",
                "Turn the pixels and remove the tag.",
            )
    else:
        values, geometry = read_with_geometry(path)
        expected = 3 if result.file.place is None else 2
        if values.ndim == 3 and expected == 2 and values.shape[2] == 1:
            values = values[:, :, 0]
        if values.ndim != expected or not values.size:
            result.add(
                ERROR,
                "shape",
                f"an array of shape {values.shape}",
                f"one of {expected} axes",
                "Write each channel into a file of its own.",
            )
        result.shape = tuple(values.shape)
        result.affine = geometry.affine
        result.spacing = tuple(float(size) for size in np.linalg.norm(geometry.affine[:3, :3], axis=0))
        if not np.isfinite(geometry.affine).all() or not abs(np.linalg.det(geometry.affine[:3, :3])) > 0:
            result.add(
                ERROR,
                "affine",
                "an affine that cannot be inverted",
                "a place in space for every voxel",
                "Mend the header.",
            )
    result.digest = hashlib.blake2b(
        np.ascontiguousarray(values, np.float32), digest_size=16, key=repr(values.shape).encode()[:64]
    ).hexdigest()
    return values


def _examine_image(result, values, normalisation):
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        result.add(ERROR, "not finite", f"{bad} values that are NaN or infinite", "finite numbers", "Replace the file.")
        values = values[np.isfinite(values)]
    if not values.size:
        return
    low = float(values.min())
    high = float(values.max())
    result.range = (low, high)
    if low == high and result.file.place is None:  # the outermost slices of a volume are empty
        result.add(
            WARNING,
            "constant",
            f"the value {low:g} everywhere",
            "a picture of something",
            "Replace the file, or take the case out.",
        )
    above_zero = normalisation == ZSCORE_RULE
    if above_zero and low < 0:
        percent = 100 * float((values < 0).mean())
        result.add(
            WARNING,
            "negative",
            f"{percent:.3g}% of the values below 0, down to {low:g}",
            "intensities from 0, because all that is not above 0 counts as background",
            "Shift the intensities, or use a layout that scales all of them.",
        )
    inside = values[values > 0] if above_zero else values.reshape(-1)
    if inside.size:
        mean, deviation = (float(of(inside, dtype=np.float64)) for of in (np.mean, np.std))
        result.moments = (int(inside.size), mean, deviation)
        result.sample = np.asarray(inside[:: max(1, inside.size // SAMPLE)], np.float32)


def _examine_labels(result, values):
    file, label_map = result.file, result.file.label_map
    if stem(file.path) is None:
        masks = read_masks(file.path, label_map)
        if label_map.is_binary and len(found := np.unique(values)) > 2:
            result.add(
                WARNING,
                "grey mask",
                f"{len(found)} different values from {found[0]:g} to {found[-1]:g}",
                "two, for background and foreground",
                "Write masks without lossy compression and without smoothing.",
            )
    else:
        # a map of which only "above zero" was chosen still knows the layout's codes
        if len(label_map.allowed) > 1:
            label_map.check(np.unique(values), file.path)
        masks = label_map.masks(values, file.path)
    result.shares = {name: float(mask.mean()) for name, mask in zip(label_map.names, masks)}

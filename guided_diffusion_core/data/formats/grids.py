"""The voxel grid of a volume: its place in space, and the exact changes of axis order and direction.

Affines follow nibabel: voxel indices to millimetres in RAS+ (x to the right, y to the front, z to the head). Where
the two transforms of a NIfTI header disagree, nibabel's rule holds: the sform counts if its code is above 0, else the
qform if its code is, else the spacing alone.
"""

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from guided_diffusion_core.errors import found_expected

# Two grids have the same points if no corner of the one lies farther from its counterpart than this, in voxels.
# A qform in 32 bits can turn a grid by 3e-4 radians, which moves the corner of 256 voxels by 0.08 of one.
TOLERANCE = 0.1
STORED = "stored"  # the orientation of each volume as its file has it
AUTO = "auto"  # the orientation that most volumes of a set have
PLACE_ADVICE = (
    "If only its header is wrong, because its voxels lie in the order of the other file's, save it with the other "
    "file's affine. Otherwise resample it onto the other file's grid, labels to the nearest neighbour."
)


@dataclass(frozen=True)
class Turn:
    """A change of the order and the directions of a volume's axes. It moves voxels and computes nothing.

    axes:  for each new axis the old one.
    flips: for each new axis whether it runs against the old one.
    """

    axes: tuple = (0, 1, 2)
    flips: tuple = (False, False, False)

    @property
    def is_identity(self):
        """Return True if nothing changes."""
        return self == Turn()

    def shape(self, shape):
        """Return the new shape of a volume of an old (X, Y, Z)."""
        return tuple(shape[axis] for axis in self.axes)

    def apply(self, array):
        """Return an array of the old axes (..., X, Y, Z) with the new ones."""
        if self.is_identity:
            return array
        first = array.ndim - 3
        turned = array.transpose(*range(first), *(first + axis for axis in self.axes))
        return turned[(..., *_steps(self.flips))]

    def undo(self, array):
        """Return an array of the new axes with the old ones (..., X, Y, Z)."""
        if self.is_identity:
            return array
        first = array.ndim - 3
        back = np.argsort(self.axes)
        return array[(..., *_steps(self.flips))].transpose(*range(first), *(first + back))

    def then(self, other):
        """Return this change followed by another one, as one."""
        axes = tuple(self.axes[axis] for axis in other.axes)
        flips = tuple(self.flips[axis] != flip for axis, flip in zip(other.axes, other.flips))
        return Turn(axes, flips)

    def matrix(self, shape):
        """Return the matrix (4, 4) from new voxel indices to old ones, for a volume of the old shape (X, Y, Z)."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for new, (old, flip) in enumerate(zip(self.axes, self.flips)):
            matrix[old, new] = -1 if flip else 1
            matrix[old, 3] = shape[old] - 1 if flip else 0
        return matrix


@dataclass(frozen=True)
class Geometry:
    """The voxel grid of a volume.

    shape:     (X, Y, Z) in voxels.
    affine:    (4, 4), voxel indices to millimetres.
    header:    nibabel header of a NIfTI file; None for other sources.
    is_placed: False if the source does not say where its voxels lie, so that its affine is only a convention.
    """

    shape: tuple
    affine: np.ndarray
    header: Any = None
    is_placed: bool = True

    @property
    def is_usable(self):
        """Return True if the affine gives every voxel a place of its own."""
        return bool(np.isfinite(self.affine).all() and abs(np.linalg.det(self.affine[:3, :3])) > 0)

    @property
    def has_place(self):
        """Return True if the source says where its voxels lie; the identity is what software writes that knows none."""
        return self.is_placed and not np.array_equal(self.affine, np.eye(4))

    @property
    def orientation(self):
        """Return where the axes point, such as "RAS"; None if the source does not say so."""
        if not self.is_placed or not self.is_usable:
            return None
        codes = nib.aff2axcodes(self.affine)
        return None if None in codes else "".join(codes)

    @property
    def spacing(self):
        """Return the distance between voxels along each axis in millimetres, a tuple of three."""
        return tuple(float(size) for size in np.linalg.norm(self.affine[:3, :3], axis=0))

    def turn_onto(self, other):
        """Return the `Turn` that brings this grid onto another one, or None if their points are not the same."""
        if self.shape == other.shape and np.array_equal(self.affine, other.affine):
            return Turn()
        if not self.is_usable or not other.is_usable:
            return None
        steps = np.linalg.inv(self.affine) @ other.affine  # the other grid's voxel indices to this one's
        turn = _nearest_turn(steps[:3, :3])
        if turn is None or turn.shape(self.shape) != tuple(other.shape):
            return None
        ends = [(0, size - 1) for size in other.shape]
        corners = np.array([(*corner, 1) for corner in itertools.product(*ends)]).T  # (4, 8)
        distance = np.abs((steps - turn.matrix(self.shape)) @ corners).max()
        return turn if distance <= TOLERANCE else None

    def agrees_with(self, other):
        """Return True if two volumes have the same points in the same order."""
        turn = self.turn_onto(other)
        return turn is not None and turn.is_identity

    def turn_to(self, orientation):
        """Return the `Turn` to an orientation such as "RAS".

        Nothing turns for `STORED` or None, nor if the source does not say where its axes point.
        """
        if orientation in (None, STORED) or self.orientation is None:
            return Turn()
        change = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt(self.orientation), nib.orientations.axcodes2ornt(orientation)
        )  # (3, 2): for each old axis the new one, and -1 if it is reversed
        axes = tuple(int(axis) for axis in np.argsort(change[:, 0]))
        return Turn(axes, tuple(bool(change[axis, 1] < 0) for axis in axes))

    def turned(self, turn):
        """Return the `Geometry` of the same points after a `Turn`."""
        affine = self.affine @ turn.matrix(self.shape)
        return Geometry(turn.shape(self.shape), affine, self.header, self.is_placed)


def describe(geometry):
    """Return the affine of a `Geometry` in one line, for errors."""
    affine = np.array2string(np.asarray(geometry.affine), separator=", ", precision=6, suppress_small=True)
    note = "" if geometry.is_placed else " (by convention: the file does not say where its voxels lie)"
    return f"affine {' '.join(affine.split())}{note}"


def require_place(where, geometry):
    """Raise `UserError` for an affine that does not give every voxel a place of its own."""
    if not geometry.is_usable:
        raise found_expected(
            where,
            "an affine that cannot be inverted",
            "an affine that gives every voxel a place in space",
            "Correct the header.",
        )


def common_orientation(orientation, geometries):
    """Return the orientation that `AUTO` means for some volumes, or another orientation as it is.

    It is the one that most of the volumes have; of several, one whose slices are axial, or the one that occurs first.
    `STORED` if no file says where its axes point.
    """
    if orientation != AUTO:
        return orientation
    found = Counter(geometry.orientation for geometry in geometries)
    del found[None]
    if not found:
        return STORED
    return max(found, key=lambda name: (found[name], name[2] in "SI"))  # the first of several


def _steps(flips):
    return tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)


def _nearest_turn(matrix):
    """Return the `Turn` nearest to a matrix (3, 3) from new to old voxel indices, or None if there is none near it."""
    nearest = np.rint(matrix)
    size = np.abs(nearest)
    if not (np.isin(size, (0, 1)).all() and (size.sum(axis=0) == 1).all() and (size.sum(axis=1) == 1).all()):
        return None
    axes = tuple(int(axis) for axis in size.argmax(axis=0))
    return Turn(axes, tuple(bool(nearest[axis, new] < 0) for new, axis in enumerate(axes)))

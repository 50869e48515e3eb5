"""The common voxel grid of the files of a case, and the orientation in which a network sees the cases of a set."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from guided_diffusion_core.data.formats.grids import (
    PLACE_ADVICE,
    STORED,
    Geometry,
    Turn,
    common_orientation,
    describe,
    require_place,
)
from guided_diffusion_core.errors import found_expected, join_names


@dataclass(frozen=True)
class CaseGrid:
    """The grid of one case.

    geometry: `Geometry` of its first part as stored.
    turns:    part -> `Turn` from the part as stored to `geometry`. Other parts may have the same points in another
              order.
    turn:     `Turn` from `geometry` to what the network sees.
    """

    geometry: Geometry
    turns: dict
    turn: Turn = Turn()

    @property
    def shape(self):
        """Return the shape that the network sees, (X, Y, Z)."""
        return self.turn.shape(self.geometry.shape)

    @property
    def orientation(self):
        """Return the orientation that the network sees, such as "RAS"; None if the files do not state one."""
        return self.geometry.turned(self.turn).orientation

    def seen(self, part, array):
        """Return an array of a part as stored, (..., X, Y, Z), as the network sees it."""
        turn = self.turns[part].then(self.turn)
        if turn.is_identity:
            return array
        # the memory order of a volume that is stored like this, so that sums over it are rounded in the same way
        return np.asfortranarray(turn.apply(array))


def common_grid(files, wanted):
    """Return the `CaseGrid` of the wanted parts of a case.

    files: `CaseFiles`.
    Raises `UserError` if a part is missing, or if the parts do not have the same points.
    """
    files.require(wanted)
    geometries = {part: files.geometry(part) for part in wanted}
    first = geometries[wanted[0]]
    turns = {}
    for part, geometry in geometries.items():
        require_place(files.where(part), geometry)
        turns[part] = turn_onto(geometry, files.where(part), first, files.where(wanted[0]))
    return CaseGrid(first, turns)


def turn_onto(geometry, where, expected, reference):
    """Return the `Turn` that brings the grid of a file onto that of another one.

    geometry, where: of the file. expected, reference: `Geometry` and name of the other file.
    Raises `UserError` if they do not have the same points.
    """
    turn = geometry.turn_onto(expected)
    if turn is not None:
        return turn
    if sorted(geometry.shape) != sorted(expected.shape):
        raise found_expected(
            where,
            f"shape {geometry.shape}",
            f"{expected.shape} as in {reference}",
            "Use the file that belongs to the case, or resample it onto the other file's grid, labels to the nearest "
            "neighbour.",
        )
    raise found_expected(
        where, describe(geometry), f"the points of {describe(expected)} as in {reference}", PLACE_ADVICE
    )


def oriented(grids, orientation):
    """Return the `CaseGrid`s of a set, turned to one orientation, and that orientation.

    grids:       list of `CaseGrid`.
    orientation: `DataConfig.orientation`.
    """
    geometries = [grid.geometry for grid in grids]
    orientation = common_orientation(orientation, geometries)
    turned = [replace(grid, turn=grid.geometry.turn_to(orientation)) for grid in grids]
    return turned, orientation


def orientation_note(names, grids, orientation):
    """Return a line about volumes of several orientations, or None if there is nothing to say.

    names: of the cases. grids: their `CaseGrid`s. orientation: that of `oriented`.
    """
    found = [grid.geometry.orientation or "none stated" for grid in grids]
    turned = [name for name, grid in zip(names, grids) if not grid.turn.is_identity]
    if turned:
        return (
            f"orientation: {len(turned)} of {len(names)} volumes are turned to {orientation} when they are read, "
            f"and their results back ({join_names(turned)})"
        )
    if orientation == STORED and len(set(found)) > 1:
        counts = ", ".join(f"{count} in {code}" for code, count in Counter(found).most_common())
        return f"orientation: the volumes are used as stored, {counts}; the network sees them differently turned"
    return None

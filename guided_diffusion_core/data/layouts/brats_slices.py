"""The original's BraTS slices: one 2D NIfTI file per slice, such as brats_train_001_t1_123_w.nii.gz.

The slices of a case are put back together into its volume, each one at its number.
"""

import re
from dataclasses import dataclass

import numpy as np

from guided_diffusion_core.data.dataset import Truth, require_unique
from guided_diffusion_core.data.formats.grids import Geometry
from guided_diffusion_core.data.formats.volumes import read_geometry, read_plane, stem
from guided_diffusion_core.data.found import find_files, nothing_found
from guided_diffusion_core.data.layout import VolumeLayout
from guided_diffusion_core.data.layouts.brats import DEFAULT_LABELS, LABEL_PART, MODALITIES, PARTS, REGIONS
from guided_diffusion_core.data.splits import choose_unless_test
from guided_diffusion_core.data.volume_cases import CaseFiles
from guided_diffusion_core.data.walk import walk_data
from guided_diffusion_core.errors import found_expected, join_names
from guided_diffusion_core.system.files import require_folder

FILE = re.compile(rf"(?P<case>.+)_(?P<part>{'|'.join((*MODALITIES, LABEL_PART))})_(?P<slice>\d+)(_w)?", re.IGNORECASE)
EXPECTED = (
    "folders of BraTS slices such as slice0001/brats_train_001_t1_123_w.nii.gz, with "
    f"{', '.join(MODALITIES)} and, for training and scoring, {LABEL_PART}"
)


@dataclass(frozen=True)
class SlicedCase(CaseFiles):
    """A case that is stored as one file per slice. Its parts are dicts of slice number -> path."""

    @property
    def numbers(self):
        """Return the numbers of the slices that have files, a tuple in rising order."""
        return tuple(sorted(set().union(*self.paths.values())))

    def require(self, wanted):
        """Raise `UserError` if a slice has no file for one of the wanted parts."""
        super().require(wanted)
        missing = [f"{part} of slice {z}" for z in self.numbers for part in wanted if z not in self.paths[part]]
        if missing:
            raise found_expected(
                f"case {self.name} in {self.folder}",
                f"no {join_names(missing)}",
                f"{', '.join(wanted)} of every slice",
                "Add the files, or remove these slices.",
            )

    def slices_with_files(self, slices):
        """Return the slices that have files, a tuple."""
        return tuple(z for z in slices if z in self.numbers)

    def read(self, part):
        """Return the voxels of a part, (X, Y, Z). Slices without a file are 0."""
        planes = {z: read_plane(path) for z, path in self.paths[part].items()}
        first = next(iter(planes.values()))
        # the memory order in which nibabel reads a volume, so that sums over it are rounded in the same way
        volume = np.zeros((*first.shape, self.numbers[-1] + 1), first.dtype, order="F")
        for z, plane in planes.items():
            volume[:, :, z] = plane
        return volume

    def geometry(self, part):
        """Return the `Geometry` of the whole volume, which begins at slice 0.

        The slice files either share one affine, which is the volume's, or each one's origin is at the slice. The
        volume is always shown as stored: single slices cannot be turned.
        Raises `UserError` if the slices do not lie on one grid.
        """
        paths = self.paths[part]
        numbers = sorted(paths)
        geometries = {z: read_geometry(paths[z], of_slice=True) for z in numbers}
        first = geometries[numbers[0]]
        # the step from slice to slice in millimetres, if the origins move
        step = np.zeros_like(first.affine[:, 2])
        if not all(geometry.agrees_with(first) for geometry in geometries.values()):
            step = first.affine[:, 2]
        for z, geometry in geometries.items():
            expected = Geometry(first.shape, _moved(first.affine, step * (z - numbers[0])))
            if not geometry.agrees_with(expected):
                raise found_expected(
                    paths[z],
                    f"another grid than in {paths[numbers[0]]}",
                    "the same shape, and either the same affine or one that moves by the distance between slices",
                    "Cut all slices from one volume.",
                )
        shape = (*first.shape[:2], self.numbers[-1] + 1)
        header = first.header.copy()
        header.set_data_shape(shape)
        return Geometry(shape, _moved(first.affine, -step * numbers[0]), header, is_placed=False)

    def where(self, part):
        """Return the name of a part in errors."""
        return f"{self.folder}, {part} of case {self.name}"

    def truth(self, part, slices, label_map, grid):
        """Return the `Truth` in a part, one file per slice."""
        planes = tuple(sorted(self.paths[part].items()))
        return Truth(self.name, self.folder, slices, self.label_map_of_case(label_map), planes, grid.geometry)


def _moved(affine, offset):
    """Return an affine (4, 4) whose origin is moved by an offset (4,) in millimetres."""
    moved = affine.copy()
    moved[:, 3] += offset
    return moved


def holds_slices(data_dir):
    """Return True if the first NIfTI file under a folder is named like a slice."""
    names = (stem(file.name) for file in walk_data(data_dir))
    first = next((name for name in names if name), None)
    return first is not None and FILE.fullmatch(first) is not None


def find_cases(data_dir, split):
    """Return the cases of a split under a folder, a list of `SlicedCase` by name.

    The test set is everything under the folder, see `splits.choose_unless_test`.
    Raises `UserError` if the folder is missing or holds no such file, and if two files claim one slice.
    """
    data_dir = require_folder(data_dir, "--data_dir", EXPECTED)
    files = find_files(data_dir, lambda name: FILE.fullmatch(stem(name) or ""))
    if not files:
        raise nothing_found(data_dir, EXPECTED)
    where = f"--data_dir {data_dir!r}"
    claims = {}  # (case, part, slice number) -> list of paths
    for file in choose_unless_test(files, split, where, lambda file: _match(file)["case"]):
        match = _match(file)
        key = match["case"], match["part"].lower(), int(match["slice"])
        claims.setdefault(key, []).append(file.path)
    paths_by_name = {f"{case}, {part}, slice {z}": paths for (case, part, z), paths in claims.items()}
    require_unique(paths_by_name, where)
    cases = {}  # case -> part -> slice number -> path
    for (case, part, z), paths in claims.items():
        cases.setdefault(case, {}).setdefault(part, {})[z] = paths[0]
    return [SlicedCase(name, data_dir, cases[name]) for name in sorted(cases)]


def _match(file):
    """Return the match of a file's name with `FILE`, or None."""
    return FILE.fullmatch(stem(file.name) or "")


def _signs(files):
    """Return the name of one file for each slice with at least two modalities."""
    modalities = {}  # (case, slice) -> modality -> name of a file
    for file in files:
        match = _match(file)
        if match and match["part"].lower() != LABEL_PART:
            modalities.setdefault((match["case"], match["slice"]), {})[match["part"].lower()] = file.shown
    return [next(iter(found.values())) for found in modalities.values() if len(found) > 1]


LAYOUT = VolumeLayout(
    name="BRATS_SLICES",
    summary="brain tumours, the original's folders of slices",
    order=30,
    expected=EXPECTED,
    labels=REGIONS,
    default_labels=DEFAULT_LABELS,
    find_cases=find_cases,
    parts=PARTS,
    signs=_signs,
)

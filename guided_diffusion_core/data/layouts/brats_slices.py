"""The original's BraTS slices: a 2D NIfTI file for each, such as brats_train_001_t1_123_w.nii.gz.

The slices of a case are put together into its volume again, each at the place that its number names.
"""

import re
from dataclasses import dataclass

import blobfile as bf
import numpy as np

from guided_diffusion_core.data.check.inventory import files_of_volumes
from guided_diffusion_core.data.dataset import Truth, require_unique
from guided_diffusion_core.data.formats.volumes import AFFINE_TOLERANCE, Geometry, read_geometry, read_plane, stem
from guided_diffusion_core.data.layouts.brats import DEFAULT_LABELS, LABELS, MODALITIES, REGIONS, VOLUMES
from guided_diffusion_core.data.volume_cases import CaseFiles, VolumeDataset, volume_truths
from guided_diffusion_core.errors import found_expected, join_names
from guided_diffusion_core.system.files import require_folder, walk_files

FILE = re.compile(rf"(?P<case>.+)_(?P<part>{'|'.join((*MODALITIES, LABELS))})_(?P<slice>\d+)(_w)?", re.IGNORECASE)
LAYOUT = (
    "folders of BraTS slices such as slice0001/brats_train_001_t1_123_w.nii.gz, with "
    f"{', '.join(MODALITIES)} and, for training and scoring, {LABELS}"
)


@dataclass(frozen=True)
class SlicedCase(CaseFiles):
    """A case whose parts are dicts of slice number -> path."""

    @property
    def numbers(self):
        """The slices that there are, a rising tuple."""
        return tuple(sorted(set().union(*self.paths.values())))

    def require(self, wanted):
        """Raise `UserError` for the slices that lack one of the wanted parts."""
        super().require(wanted)
        lacking = [f"{part} of slice {z}" for z in self.numbers for part in wanted if z not in self.paths[part]]
        if lacking:
            raise found_expected(
                f"case {self.name} in {self.folder}",
                f"no {join_names(lacking)}",
                f"{', '.join(wanted)} of every slice",
                "Add the files or take the slices out.",
            )

    def present(self, slices):
        """Those of the slices that have files."""
        return tuple(z for z in slices if z in self.numbers)

    def read(self, part):
        """The voxels of a part, (X, Y, Z); slices without a file are 0."""
        planes = {z: read_plane(path) for z, path in self.paths[part].items()}
        first = next(iter(planes.values()))
        # in memory as nibabel reads a volume, so that sums over it round alike
        volume = np.zeros((*first.shape, self.numbers[-1] + 1), first.dtype, order="F")
        for z, plane in planes.items():
            volume[:, :, z] = plane
        return volume

    def geometry(self, part):
        """The grid of the whole volume: that of the slices, the first voxel moved back to slice 0 where each slice
        has a place of its own. Raises `UserError` for slices that are of different grids."""
        numbers = sorted(self.paths[part])
        paths = self.paths[part]
        found = {z: read_geometry(paths[z], of_slice=True) for z in numbers}
        first = found[numbers[0]]
        step = first.affine[:, 2]
        moves = [not np.allclose(found[z].affine, first.affine, rtol=0, atol=AFFINE_TOLERANCE) for z in numbers]
        for z in numbers:
            expected = first.affine.copy()
            expected[:, 3] += step * (z - numbers[0]) * any(moves)
            agrees = np.allclose(found[z].affine, expected, rtol=0, atol=AFFINE_TOLERANCE)
            if found[z].shape != first.shape or not agrees:
                raise found_expected(
                    paths[z],
                    f"another grid than in {paths[numbers[0]]}",
                    "one shape, and one affine or one that moves by a slice's thickness",
                    "Cut the slices out of one volume.",
                )
        affine = first.affine.copy()
        affine[:, 3] -= step * numbers[0] * any(moves)
        shape = (*first.shape[:2], self.numbers[-1] + 1)
        header = first.header.copy()
        header.set_data_shape(shape)
        return Geometry(shape, affine, header)

    def where(self, part):
        """How errors name a part."""
        return f"{self.folder}, {part} of case {self.name}"

    def truth(self, part, slices, label_map):
        """The `Truth` that a part holds, one file per slice."""
        planes = tuple(sorted(self.paths[part].items()))
        return Truth(self.name, self.folder, slices, self.meaning(label_map), planes)


def holds_slices(data_dir):
    """Whether the first NIfTI file under a folder is named like a slice."""
    names = (stem(file) for _, file in walk_files(str(data_dir)))
    first = next((name for name in names if name), None)
    return first is not None and FILE.fullmatch(first) is not None


def find_cases(data_dir):
    """All cases under a folder, a list of `SlicedCase` by name.

    Raises `UserError` if the folder is missing or holds no such file, and if two files claim one slice.
    """
    data_dir = require_folder(data_dir, "--data_dir", LAYOUT)
    claims = {}
    for folder, file in walk_files(data_dir):
        match = FILE.fullmatch(stem(file) or "")
        if match:
            key = match["case"], match["part"].lower(), int(match["slice"])
            claims.setdefault(key, []).append(bf.join(folder, file))
    if not claims:
        raise found_expected(f"--data_dir {data_dir!r}", "no slice of a known modality", LAYOUT, "Check the path.")
    require_unique(
        {f"{case}, {part}, slice {z}": paths for (case, part, z), paths in claims.items()}, f"--data_dir {data_dir!r}"
    )
    cases = {}
    for (case, part, z), [path, *_] in claims.items():
        cases.setdefault(case, {}).setdefault(part, {})[z] = path
    return [SlicedCase(name, data_dir, cases[name]) for name in sorted(cases)]


def open_dataset(config, size, split, need_masks):
    """See `data.open_dataset`; all cases are used, whatever the split."""
    return VolumeDataset(
        find_cases(config.data_dir),
        VOLUMES,
        REGIONS.select(config.labels, DEFAULT_LABELS),
        size,
        config.slices,
        need_masks,
        config.upstream_compat,
        config.data_dir,
    )


def open_truths(config, split):
    """See `data.list_truths`."""
    return volume_truths(
        find_cases(config.data_dir),
        VOLUMES,
        REGIONS.select(config.labels, DEFAULT_LABELS),
        config.slices,
        config.data_dir,
    )


def list_files(config, split, need_masks):
    """See `data.list_files`."""
    label_map = REGIONS.select(config.labels, DEFAULT_LABELS)
    return VOLUMES.normalisation, files_of_volumes(find_cases(config.data_dir), VOLUMES, label_map, need_masks)

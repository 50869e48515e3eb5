"""BraTS 2020 and 2021: folders of volumes, one NIfTI file per modality, used slice by slice."""
from dataclasses import dataclass
from typing import Optional

import blobfile as bf
import numpy as np

from guided_diffusion_core.data.dataset import Case, Example, Truth, listed, require_unique
from guided_diffusion_core.data.labels import LabelMap
from guided_diffusion_core.data.slices import parse_slices
from guided_diffusion_core.data.transforms import ZSCORE_RULE, resize_linear, resize_nearest, zscore
from guided_diffusion_core.data.volumes import (
    VolumeCache,
    read_geometry,
    read_volume,
    slices_above_zero,
    stem,
)
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.files import require_folder, walk_files

MODALITIES = ("t1", "t1ce", "t2", "flair")  # in the original's order of channels
LABELS = "seg"
LAYOUT = ("folders of BraTS volumes such as BraTS2021_00000/BraTS2021_00000_flair.nii.gz, with "
          f"{', '.join(MODALITIES)} and, for training and scoring, {LABELS}")
# Up to 2021 the enhancing tumour has code 4, from 2023 on 3; edema is 2, the necrotic core 1.
REGIONS = LabelMap(
    names=("whole_tumour", "tumour_core", "enhancing"),
    values=(None, frozenset({1, 3, 4}), frozenset({3, 4})),
    known=frozenset({0, 2}), exclusive=frozenset({3, 4}))
DEFAULT_LABELS = ("whole_tumour",)
CACHE_BYTES = 4 << 30  # of prepared volumes, in each process that reads data


@dataclass(frozen=True)
class BratsFiles:
    """The files of one case: dict of modality or "seg" -> path; others: further NIfTI files beside."""

    name: str
    folder: str
    paths: dict
    others: tuple

    def require(self, wanted):
        """Raise `UserError` naming the case and what it lacks of `wanted`."""
        missing = [modality for modality in wanted if modality not in self.paths]
        if missing:
            also = f" (and {listed(self.others)} of unknown meaning)" if self.others else ""
            raise found_expected(
                f"case {self.name} in {self.folder}", f"only {', '.join(sorted(self.paths))}{also}; "
                f"{', '.join(missing)} missing", "one file each of " + ", ".join(wanted),
                "Add the missing files, named by their last part, or take the case out of the folder.")


def find_cases(data_dir):
    """All cases under a folder, a list of `BratsFiles` by name.

    Files of a case share their folder and their name up to the last "_", after which comes the
    modality (any case); a file named by its modality alone takes its folder's name.
    Raises `UserError` if the folder is missing or holds no such file, if two files claim one
    modality of a case, or if two cases have one name.
    """
    data_dir = require_folder(data_dir, "--data_dir", LAYOUT)
    groups, others = {}, {}
    for folder, file in walk_files(data_dir):
        name, _, modality = (stem(file) or "").rpartition("_")
        if modality.lower() in (*MODALITIES, LABELS):
            group = groups.setdefault((folder, name or bf.basename(folder)), {})
            group.setdefault(modality.lower(), []).append(bf.join(folder, file))
        elif modality:
            others.setdefault(folder, []).append(file)
    if not groups:
        raise found_expected(f"--data_dir {data_dir!r}", "no volume of a known modality", LAYOUT,
                             "Check the path.")
    folders_by_name = {}
    for folder, name in groups:
        folders_by_name.setdefault(name, []).append(folder)
    require_unique(folders_by_name, f"--data_dir {data_dir!r}")
    for (folder, name), paths in groups.items():
        require_unique({f"{name}, {modality}": files for modality, files in paths.items()}, folder)
    return [
        BratsFiles(name, folder, {modality: files[0] for modality, files in paths.items()},
                   tuple(others.get(folder, ())))
        for (folder, name), paths in sorted(groups.items(), key=lambda item: item[0][1])
    ]


def common_geometry(files, wanted):
    """The `Geometry` that the wanted files of a case share. Raises `UserError` where one differs."""
    files.require(wanted)
    geometries = {modality: read_geometry(files.paths[modality]) for modality in wanted}
    first = geometries[wanted[0]]
    for modality, geometry in geometries.items():
        if not first.agrees_with(geometry):
            what = "shape" if geometry.shape != first.shape else "affine"
            raise found_expected(
                files.paths[modality], f"{what} {_in_line(getattr(geometry, what))}",
                f"{_in_line(getattr(first, what))} as in {files.paths[wanted[0]]}",
                "Resample the files of a case to one grid.")
    return first


def select_slices(files, depth, slice_filter):
    """Numbers of the axial slices of a case that pass the filter, reading only what it needs."""
    brain = tumour = None
    if slice_filter.needs_brain:
        files.require(MODALITIES)
        brain = np.logical_or.reduce([slices_above_zero(read_volume(files.paths[m])) for m in MODALITIES])
    if slice_filter.needs_tumour:
        if LABELS not in files.paths:
            raise found_expected(
                "--slices tumour", f"no labels ({LABELS}) of case {files.name} in {files.folder}",
                "labels, because they say where the tumour is", "Choose other slices.")
        tumour = slices_above_zero(read_volume(files.paths[LABELS]))
    return slice_filter.select(depth, brain, tumour)


@dataclass(frozen=True)
class PreparedVolume:
    """A case as network input: image (Z, 4, S, S) float32, mask (Z, K, S, S) bool or None."""

    image: np.ndarray
    mask: Optional[np.ndarray]

    @property
    def nbytes(self):
        """Memory that it takes."""
        return self.image.nbytes + (0 if self.mask is None else self.mask.nbytes)


class BratsDataset:
    """Axial slices of BraTS volumes (`Dataset`): channels t1, t1ce, t2, flair; a mask for each of `labels`.

    Every file's header is checked here, its voxels when its volume is first used: a volume is read,
    normalised and resized once as a whole and kept while the cache allows.

    data_dir:        folder with the cases, at any depth; all of them are used.
    size:            side of the slices in pixels.
    slices:          value of `--slices`.
    need_masks:      False for label-free sampling: examples have no mask and seg files may lack.
    upstream_compat: masks as the original resizes them, bilinearly and then above zero.
    Raises `UserError` for what is missing, broken or does not fit together.
    """

    in_channels = len(MODALITIES)
    labels = ("whole_tumour",)
    normalisation = ZSCORE_RULE

    def __init__(self, data_dir, size, slices="all", need_masks=True, upstream_compat=False,
                 cache_bytes=CACHE_BYTES, labels=""):
        self._label_map = REGIONS.select(labels, DEFAULT_LABELS)
        self.labels = self._label_map.names
        self.size, self.need_masks, self.upstream_compat = size, need_masks, upstream_compat
        self._cache = VolumeCache(cache_bytes)
        self._files, self._cases, self._examples = {}, [], []
        slice_filter = parse_slices(slices)
        for files in find_cases(data_dir):
            self._add(files, slice_filter)
        if not self._examples:
            raise _no_slices(slices, data_dir)

    def _add(self, files, slice_filter):
        with_labels = self.need_masks or (slice_filter.needs_tumour and LABELS in files.paths)
        geometry = common_geometry(files, MODALITIES + ((LABELS,) if with_labels else ()))
        chosen = select_slices(files, geometry.shape[2], slice_filter)
        if chosen:
            start = len(self._examples)
            self._files[files.name] = files
            self._examples += [(files.name, z) for z in chosen]
            indices = tuple(range(start, start + len(chosen)))
            self._cases.append(
                Case(files.name, indices, geometry.shape, chosen, geometry.affine, geometry.header))

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        name, z = self._examples[index]
        volume = self._cache.get(name, lambda: self._prepare(self._files[name]))
        mask = None if volume.mask is None else volume.mask[z].astype(np.float32)
        return Example(volume.image[z].copy(), mask, name, z)

    def cases(self):
        """All cases with at least one chosen slice."""
        return list(self._cases)

    def _prepare(self, files):
        shape = (self.size, self.size)
        image = np.stack([
            resize_linear(np.moveaxis(zscore(read_volume(files.paths[modality])), 2, 0), shape)
            for modality in MODALITIES
        ], axis=1)  # 4 x (Z, S, S) -> (Z, 4, S, S)
        if not self.need_masks:
            return PreparedVolume(image, None)
        masks = self._label_map.masks(read_volume(files.paths[LABELS]), files.paths[LABELS])
        labels = masks.transpose(3, 0, 1, 2)  # (K, X, Y, Z) -> (Z, K, X, Y)
        mask = resize_linear(labels, shape) > 0 if self.upstream_compat else resize_nearest(labels, shape)
        return PreparedVolume(image, mask)


def list_truths(data_dir, slices="all", labels=""):
    """The ground truth of every case under a folder, a list of `Truth`; cases without a chosen
    slice are left out. The images are needed only for the filter "brain".

    Raises `UserError` for a case without labels, and if no slice is chosen at all.
    """
    slice_filter, label_map = parse_slices(slices), REGIONS.select(labels, DEFAULT_LABELS)
    truths = []
    for files in find_cases(data_dir):
        depth = common_geometry(files, (LABELS,)).shape[2]
        chosen = select_slices(files, depth, slice_filter)
        if chosen:
            truths.append(Truth(files.name, files.paths[LABELS], chosen, label_map))
    if not truths:
        raise _no_slices(slices, data_dir)
    return truths


def _no_slices(slices, data_dir):
    return UserError(f"--slices {slices!r}: found no slice that passes in any volume of {data_dir}; expected "
                     f"at least one. Choose other slices.")


def _in_line(values):
    return np.array2string(np.asarray(values), separator=", ").replace("\n", "")

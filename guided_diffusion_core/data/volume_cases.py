"""Cases of volumes with one file per channel, used slice by slice. All layouts of volumes share this module."""

from dataclasses import dataclass

import numpy as np

from guided_diffusion_core.data.case_grids import common_grid, orientation_note, oriented
from guided_diffusion_core.data.dataset import Case, Example, Truth, require_unique
from guided_diffusion_core.data.formats.grids import AUTO
from guided_diffusion_core.data.formats.mask_values import foreground
from guided_diffusion_core.data.formats.slices import parse_slices
from guided_diffusion_core.data.formats.transforms import (
    FINITE_ADVICE,
    require_finite,
    resize_linear,
    resize_nearest,
)
from guided_diffusion_core.data.formats.volumes import VolumeCache, read_geometry, read_volume, slices_above_zero
from guided_diffusion_core.errors import UserError, found_expected, join_names

CACHE_BYTES = 4 << 30  # memory for prepared volumes in each process that reads data


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    name:   name of the case.
    folder: the folder that holds it, for errors.
    paths:  dict of part -> path. A part is a channel or the labels.
    others: names of other files in the folder, for errors.
    """

    name: str
    folder: str
    paths: dict
    others: tuple = ()

    def require(self, wanted):
        """Raise `UserError` if the case lacks some of the wanted parts."""
        missing = [part for part in wanted if part not in self.paths]
        if missing:
            also = f" (and {join_names(self.others)} of unknown meaning)" if self.others else ""
            raise found_expected(
                f"case {self.name} in {self.folder}",
                f"only {', '.join(sorted(self.paths))}{also}; {', '.join(missing)} missing",
                "one file each of " + ", ".join(wanted),
                "Add the missing files, named by their last part, or remove the case from the folder.",
            )

    def read(self, part):
        """Return the voxels of a part, (X, Y, Z)."""
        return read_volume(self.paths[part])

    def geometry(self, part):
        """Return the `Geometry` of a part."""
        return read_geometry(self.paths[part])

    def where(self, part):
        """Return the name of a part in errors."""
        return self.paths[part]

    def slices_with_files(self, slices):
        """Return the slices that the files of the case hold; a volume holds all of them."""
        return slices

    def label_map_of_case(self, label_map):
        """Return the label map of this case; a layout may use other codes for some of its cases."""
        return label_map

    def masks(self, part, label_map):
        """Return the masks of the labels in a part, bool (K, X, Y, Z)."""
        return self.label_map_of_case(label_map).masks(self.read(part), self.where(part))

    def truth(self, part, slices, label_map, grid):
        """Return the `Truth` in a part. grid: `CaseGrid` of the case."""
        return Truth(
            self.name,
            self.paths[part],
            slices,
            self.label_map_of_case(label_map),
            geometry=grid.geometry,
            orientation=grid.orientation,
        )


@dataclass(frozen=True)
class VolumeParts:
    """The parts that a layout has for each case, and how their intensities are scaled.

    channels:      parts that are the channels of the image, in order.
    labels:        the part that holds the labels.
    scales:        for each channel the function that turns its voxels into float32 network input. It raises a
                   ValueError that says what is wrong with the voxels.
    normalisation: the scales in words.
    """

    channels: tuple
    labels: str
    scales: tuple
    normalisation: str


def select_slices(files, parts, grid, slice_filter, threshold):
    """Return the numbers of the slices of a case that pass a `SliceFilter`, along the last axis that the network sees.

    grid:      `CaseGrid` with the parts that the filter needs; only their files are read.
    threshold: `LabelMap.threshold`.
    """
    brain = None
    tumour = None
    if slice_filter.needs_brain:
        volumes = [grid.seen(channel, files.read(channel)) for channel in parts.channels]
        brain = np.logical_or.reduce([slices_above_zero(volume) for volume in volumes])
    if slice_filter.needs_tumour:
        if parts.labels not in files.paths:
            raise found_expected(
                "--slices tumour",
                f"no labels ({parts.labels}) of case {files.name} in {files.folder}",
                "labels, because they show where the tumour is",
                "Choose other slices.",
            )
        labelled = foreground(files.read(parts.labels), files.where(parts.labels), threshold)
        tumour = slices_above_zero(grid.seen(parts.labels, labelled))
    return files.slices_with_files(slice_filter.select(grid.shape[2], brain, tumour))


@dataclass(frozen=True)
class PreparedVolume:
    """A case as network input.

    image: (Z, C, S, S) float32.
    mask:  (Z, K, S, S) bool, or None if the dataset has no masks.
    """

    image: np.ndarray
    mask: np.ndarray | None

    @property
    def nbytes(self):
        """Return the memory that the arrays take, in bytes."""
        mask_bytes = 0 if self.mask is None else self.mask.nbytes
        return self.image.nbytes + mask_bytes


class VolumeDataset:
    """A dataset of axial slices of volumes (`Dataset`).

    The headers of all files are checked at once, the voxels of a volume when it is first used: the volume is then
    read, turned, normalised and resized as a whole, and stays in the cache while there is room.

    cases:           list of `CaseFiles`; all of them are used.
    parts:           `VolumeParts` of each case.
    label_map:       `LabelMap` of the masks.
    size:            side of the slices in pixels.
    slices:          value of `--slices`.
    need_masks:      False for sampling without labels: the examples have no mask, and labels may be missing.
    upstream_compat: resize masks like the original: bilinearly, then take all that is above zero.
    data_dir:        the folder of the cases, for errors.
    cache_bytes:     memory for prepared volumes.
    orientation:     `DataConfig.orientation`; afterwards the attribute says which one is used, for the checkpoint.
    Raises `UserError` for files that are missing or broken, or that do not belong together.
    """

    def __init__(
        self,
        cases,
        parts,
        label_map,
        size,
        slices,
        need_masks,
        upstream_compat,
        data_dir,
        cache_bytes=CACHE_BYTES,
        orientation=AUTO,
    ):
        self.size = size
        self.need_masks = need_masks
        self.upstream_compat = upstream_compat
        self.in_channels = len(parts.channels)
        self.normalisation = parts.normalisation
        self.labels = label_map.names
        self._parts = parts
        self._label_map = label_map
        self._cache = VolumeCache(cache_bytes)
        self._files = {}  # case name -> (`CaseFiles`, `CaseGrid`)
        self._cases = []  # list of `Case`
        self._examples = []  # list of (case name, slice number)
        slice_filter = parse_slices(slices)
        grids, self.orientation = oriented([self._grid(files, slice_filter) for files in cases], orientation)
        note = orientation_note([files.name for files in cases], grids, self.orientation)
        self.remarks = (note,) if note else ()
        for files, grid in zip(cases, grids):
            self._add(files, grid, slice_filter)
        if not self._examples:
            raise _no_slices(slices, data_dir)

    def _grid(self, files, slice_filter):
        """Return the `CaseGrid` of the parts of a case that are used."""
        wanted = self._parts.channels
        labels = self._parts.labels
        if self.need_masks or (slice_filter.needs_tumour and labels in files.paths):
            wanted = (*wanted, labels)
        return common_grid(files, wanted)

    def _add(self, files, grid, slice_filter):
        """Add the slices of a case that pass the filter."""
        chosen = select_slices(files, self._parts, grid, slice_filter, self._label_map.threshold)
        if chosen:
            start = len(self._examples)
            self._files[files.name] = files, grid
            self._examples += [(files.name, z) for z in chosen]
            indices = tuple(range(start, start + len(chosen)))
            stored = grid.geometry
            self._cases.append(Case(files.name, indices, stored.shape, chosen, stored.affine, stored.header, grid.turn))

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        name, z = self._examples[index]
        volume = self._cache.get(name, lambda: self._prepare(*self._files[name]))
        mask = None if volume.mask is None else volume.mask[z].astype(np.float32)
        return Example(volume.image[z].copy(), mask, name, z)

    def cases(self):
        """Return a `Case` for each volume with at least one chosen slice."""
        return list(self._cases)

    def _prepare(self, files, grid):
        """Read a case and return it as a `PreparedVolume`."""
        shape = (self.size, self.size)
        channels = []
        for channel, scale in zip(self._parts.channels, self._parts.scales):
            volume = _scaled(files, grid, channel, scale)
            values = np.moveaxis(volume, 2, 0)  # (X, Y, Z) -> (Z, X, Y)
            channels.append(resize_linear(values, shape))  # (Z, S, S)
        image = np.stack(channels, axis=1)  # (Z, C, S, S)
        if not self.need_masks:
            return PreparedVolume(image, None)
        labels = self._parts.labels
        masks = grid.seen(labels, files.masks(labels, self._label_map))
        masks = masks.transpose(3, 0, 1, 2)  # (K, X, Y, Z) -> (Z, K, X, Y)
        mask = resize_linear(masks, shape) > 0 if self.upstream_compat else resize_nearest(masks, shape)
        return PreparedVolume(image, mask)


def volume_truths(cases, parts, label_map, slices, data_dir, orientation=AUTO):
    """Return the ground truth of every case with a chosen slice, a list of `Truth`.

    The images are needed only for the slice filter "brain". The other arguments are those of `VolumeDataset`.
    Raises `UserError` for a case without labels, and if no case has a chosen slice.
    """
    slice_filter = parse_slices(slices)
    wanted = (parts.labels,)
    if slice_filter.needs_brain:
        wanted = (*wanted, *parts.channels)
    grids, _ = oriented([common_grid(files, wanted) for files in cases], orientation)
    truths = []
    for files, grid in zip(cases, grids):
        chosen = select_slices(files, parts, grid, slice_filter, label_map.threshold)
        if chosen:
            truths.append(files.truth(parts.labels, chosen, label_map, grid))
    if not truths:
        raise _no_slices(slices, data_dir)
    return truths


def unique_cases(groups, others, data_dir, make=CaseFiles):
    """Return the cases of a folder, a list of `CaseFiles` by name.

    groups: dict of (folder, case name) -> dict of part -> list of paths; each list must have one path.
    others: dict of folder -> list of files of unknown meaning.
    make:   `CaseFiles` or a subclass.
    Reports a `UserError` if two files claim one part of a case, or if two cases have the same name.
    """
    folders_by_name = {}
    for folder, name in groups:
        folders_by_name.setdefault(name, []).append(folder)
    require_unique(folders_by_name, f"--data_dir {data_dir!r}")
    for (folder, name), parts in groups.items():
        require_unique({f"{name}, {part}": paths for part, paths in parts.items()}, folder)
    cases = []
    for (folder, name), parts in groups.items():
        first_paths = {part: paths[0] for part, paths in parts.items()}
        cases.append(make(name, folder, first_paths, tuple(others.get(folder, ()))))
    return sorted(cases, key=lambda case: case.name)


def _scaled(files, grid, channel, scale):
    """Return the voxels of a channel as float32 network input in the network's orientation, (X, Y, Z)."""
    values = grid.seen(channel, files.read(channel))
    try:
        require_finite(values)
        return scale(values)
    except ValueError as error:
        raise found_expected(files.where(channel), str(error), "finite numbers", FINITE_ADVICE) from error


def _no_slices(slices, data_dir):
    return UserError(
        f"--slices {slices!r}: found no slice that passes in any volume of {data_dir}; expected "
        f"at least one. Choose other slices."
    )

"""Cases of volumes, one file per channel, used slice by slice: shared by all layouts of volumes."""

from dataclasses import dataclass

import numpy as np

from guided_diffusion_core.data.dataset import Case, Example, Truth, require_unique
from guided_diffusion_core.data.formats.slices import parse_slices
from guided_diffusion_core.data.formats.transforms import resize_linear, resize_nearest
from guided_diffusion_core.data.formats.volumes import VolumeCache, read_geometry, read_volume, slices_above_zero
from guided_diffusion_core.errors import UserError, found_expected, join_names

CACHE_BYTES = 4 << 30  # of prepared volumes, in each process that reads data


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case: dict of part (a channel, or the labels) -> path; others: further files beside."""

    name: str
    folder: str
    paths: dict
    others: tuple = ()

    def require(self, wanted):
        """Raise `UserError` naming the case and what it lacks of the parts `wanted`."""
        missing = [part for part in wanted if part not in self.paths]
        if missing:
            also = f" (and {join_names(self.others)} of unknown meaning)" if self.others else ""
            raise found_expected(
                f"case {self.name} in {self.folder}",
                f"only {', '.join(sorted(self.paths))}{also}; {', '.join(missing)} missing",
                "one file each of " + ", ".join(wanted),
                "Add the missing files, named by their last part, or take the case out of the folder.",
            )

    def read(self, part):
        """The voxels of a part, (X, Y, Z)."""
        return read_volume(self.paths[part])

    def geometry(self, part):
        """The `Geometry` of a part."""
        return read_geometry(self.paths[part])

    def where(self, part):
        """How errors name a part."""
        return self.paths[part]

    def present(self, slices):
        """Those of the slices that the case has, all of a volume."""
        return slices

    def meaning(self, label_map):
        """What a layout's label map is for this case, whose name may tell one variant of it."""
        return label_map

    def masks(self, part, label_map):
        """The masks of the labels in a part, bool (K, X, Y, Z)."""
        return self.meaning(label_map).masks(self.read(part), self.where(part))

    def truth(self, part, slices, label_map):
        """The `Truth` that a part holds."""
        return Truth(self.name, self.paths[part], slices, self.meaning(label_map))


@dataclass(frozen=True)
class VolumeLayout:
    """What a layout says of its volumes.

    channels:      parts that are the image's channels, in order.
    labels:        the part that holds the labels.
    scales:        for each channel the function of its voxels that makes them float32 network input; a
                   ValueError of it says what is wrong with them.
    normalisation: these rules in words.
    """

    channels: tuple
    labels: str
    scales: tuple
    normalisation: str


def common_geometry(files, wanted):
    """The `Geometry` that the wanted files of a case share. Raises `UserError` where one differs."""
    files.require(wanted)
    geometries = {part: files.geometry(part) for part in wanted}
    first = geometries[wanted[0]]
    for part, geometry in geometries.items():
        if not first.agrees_with(geometry):
            what = "shape" if geometry.shape != first.shape else "affine"
            raise found_expected(
                files.where(part),
                f"{what} {_in_line(getattr(geometry, what))}",
                f"{_in_line(getattr(first, what))} as in {files.where(wanted[0])}",
                "Resample the files of a case to one grid.",
            )
    return first


def select_slices(files, layout, depth, slice_filter):
    """Numbers of the axial slices of a case that pass the filter, reading only what it needs."""
    brain = tumour = None
    if slice_filter.needs_brain:
        files.require(layout.channels)
        brain = np.logical_or.reduce([slices_above_zero(files.read(channel)) for channel in layout.channels])
    if slice_filter.needs_tumour:
        if layout.labels not in files.paths:
            raise found_expected(
                "--slices tumour",
                f"no labels ({layout.labels}) of case {files.name} in {files.folder}",
                "labels, because they say where the tumour is",
                "Choose other slices.",
            )
        tumour = slices_above_zero(files.read(layout.labels))
    return files.present(slice_filter.select(depth, brain, tumour))


@dataclass(frozen=True)
class PreparedVolume:
    """A case as network input: image (Z, C, S, S) float32, mask (Z, K, S, S) bool or None."""

    image: np.ndarray
    mask: np.ndarray | None

    @property
    def nbytes(self):
        """Memory that it takes."""
        return self.image.nbytes + (0 if self.mask is None else self.mask.nbytes)


class VolumeDataset:
    """Axial slices of volumes (`Dataset`).

    Every file's header is checked here, its voxels when its volume is first used: a volume is read,
    normalised and resized once as a whole and kept while the cache allows.

    cases:           list of `CaseFiles`; all of them are used.
    layout:          `VolumeLayout`. label_map: `LabelMap` of the masks.
    size:            side of the slices in pixels.
    slices:          value of `--slices`.
    need_masks:      False for label-free sampling: examples have no mask and labels may lack.
    upstream_compat: masks as the original resizes them, bilinearly and then above zero.
    data_dir:        where the cases come from, for errors.
    Raises `UserError` for what is missing, broken or does not fit together.
    """

    def __init__(
        self, cases, layout, label_map, size, slices, need_masks, upstream_compat, data_dir, cache_bytes=CACHE_BYTES
    ):
        self.size = size
        self.need_masks = need_masks
        self.upstream_compat = upstream_compat
        self.in_channels = len(layout.channels)
        self.normalisation = layout.normalisation
        self.labels = label_map.names
        self._layout = layout
        self._label_map = label_map
        self._cache = VolumeCache(cache_bytes)
        self._files = {}
        self._cases = []
        self._examples = []
        slice_filter = parse_slices(slices)
        for files in cases:
            self._add(files, slice_filter)
        if not self._examples:
            raise _no_slices(slices, data_dir)

    def _add(self, files, slice_filter):
        layout = self._layout
        with_labels = self.need_masks or (slice_filter.needs_tumour and layout.labels in files.paths)
        geometry = common_geometry(files, layout.channels + ((layout.labels,) if with_labels else ()))
        chosen = select_slices(files, layout, geometry.shape[2], slice_filter)
        if chosen:
            start = len(self._examples)
            self._files[files.name] = files
            self._examples += [(files.name, z) for z in chosen]
            indices = tuple(range(start, start + len(chosen)))
            self._cases.append(Case(files.name, indices, geometry.shape, chosen, geometry.affine, geometry.header))

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
        layout = self._layout
        image = np.stack(
            [
                resize_linear(np.moveaxis(_scaled(files, channel, scale), 2, 0), shape)
                for channel, scale in zip(layout.channels, layout.scales)
            ],
            axis=1,
        )  # C x (Z, S, S) -> (Z, C, S, S)
        if not self.need_masks:
            return PreparedVolume(image, None)
        masks = files.masks(layout.labels, self._label_map).transpose(3, 0, 1, 2)  # (K, X, Y, Z) -> (Z, K, X, Y)
        mask = resize_linear(masks, shape) > 0 if self.upstream_compat else resize_nearest(masks, shape)
        return PreparedVolume(image, mask)


def volume_truths(cases, layout, label_map, slices, data_dir):
    """The ground truth of every case, a list of `Truth`; cases without a chosen slice are left out.
    The images are needed only for the filter "brain".

    Raises `UserError` for a case without labels, and if no slice is chosen at all.
    """
    slice_filter = parse_slices(slices)
    truths = []
    for files in cases:
        depth = common_geometry(files, (layout.labels,)).shape[2]
        chosen = select_slices(files, layout, depth, slice_filter)
        if chosen:
            truths.append(files.truth(layout.labels, chosen, label_map))
    if not truths:
        raise _no_slices(slices, data_dir)
    return truths


def unique_cases(groups, others, data_dir, make=CaseFiles):
    """The cases of a folder, sorted by name.

    groups: dict (folder, case name) -> dict part -> list of paths, each of which must be one.
    others: dict folder -> list of files of unknown meaning. make: what makes a `CaseFiles`.
    Raises `UserError` if two files claim one part of a case, or two cases one name.
    """
    folders_by_name = {}
    for folder, name in groups:
        folders_by_name.setdefault(name, []).append(folder)
    require_unique(folders_by_name, f"--data_dir {data_dir!r}")
    for (folder, name), paths in groups.items():
        require_unique({f"{name}, {part}": files for part, files in paths.items()}, folder)
    return [
        make(name, folder, {part: files[0] for part, files in paths.items()}, tuple(others.get(folder, ())))
        for (folder, name), paths in sorted(groups.items(), key=lambda item: item[0][1])
    ]


def _scaled(files, channel, scale):
    values = files.read(channel)
    try:
        return scale(values)
    except ValueError as error:
        raise found_expected(files.where(channel), str(error), "finite numbers", "Replace the file.") from error


def _no_slices(slices, data_dir):
    return UserError(
        f"--slices {slices!r}: found no slice that passes in any volume of {data_dir}; expected "
        f"at least one. Choose other slices."
    )


def _in_line(values):
    return np.array2string(np.asarray(values), separator=", ").replace("\n", "")

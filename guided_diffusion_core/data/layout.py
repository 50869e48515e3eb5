"""Layouts: how the files of a data set lie in its folder, and how they become a dataset.

Each module in `data/layouts/` defines one layout as `LAYOUT`. Most of them are a `PictureLayout` or a `VolumeLayout`
and only say how their files are found; the others derive from `Layout`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from guided_diffusion_core.data.check.inventory import files_of_pairs, files_of_volumes
from guided_diffusion_core.data.folders import folder_labels
from guided_diffusion_core.data.formats.images import require_picture
from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.formats.slices import require_all_slices
from guided_diffusion_core.data.formats.transforms import RGB_RULE
from guided_diffusion_core.data.pairs import PairDataset, pair_truths
from guided_diffusion_core.data.volume_cases import VolumeDataset, VolumeParts, volume_truths


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The base class of all layouts.

    name:           value of `--data_name`, in capitals.
    summary:        what the data are, in a few words, for help texts.
    order:          place in help texts and lists, the lowest number first.
    expected:       the files that the layout expects, in words, for errors.
    labels:         `LabelMap` of the layout, or None if a file in the data folder describes the labels.
    default_labels: names of the labels that are used without `--labels`.
    signs:          function of the `DataFile`s of a folder that returns names of files and folders, relative to it, by
                    which the layout is recognised, [] if it is not; None for a layout that is never guessed.
    is_general:     the signs are those of any folder of pictures or volumes.
    """

    name: str
    summary: str
    order: int
    expected: str
    labels: LabelMap | None = None
    default_labels: tuple = ()
    signs: Callable | None = None
    is_general: bool = False

    def choose_labels(self, config, need_values):
        """Return the `LabelMap` of the labels that a `DataConfig` chooses.

        need_values: False if only the names of the labels matter, because no mask is read.
        Raises `UserError` for a name that the data set does not have.
        """
        return self.labels.select(config.labels, self.default_labels)

    def label_map(self, config, need_values):
        """Return the `LabelMap` of `choose_labels` with the configured threshold of binary masks."""
        return replace(self.choose_labels(config, need_values), threshold=config.mask_threshold)

    def open_dataset(self, config, size, split, need_masks):
        """Return the `Dataset`, see `data.open_dataset`."""
        raise NotImplementedError

    def list_truths(self, config, split):
        """Return the list of `Truth`, see `data.list_truths`."""
        raise NotImplementedError

    def list_files(self, config, split, need_masks):
        """Return (normalisation, list of `ListedFile`), see `data.list_files`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PictureLayout(Layout):
    """A layout of 2D pictures with one mask file each.

    find_pairs: function (data_dir, split) -> list of `Pair`.
    labels:     if None, the labels come from labels.json in the data folder; without that file there is one mask.
    """

    find_pairs: Callable

    def choose_labels(self, config, need_values):
        """Return the `LabelMap` of the labels that a `DataConfig` chooses, see `Layout`."""
        if self.labels is None:
            return folder_labels(config.data_dir, config.labels, need_values, plain=True)
        return super().choose_labels(config, need_values)

    def open_dataset(self, config, size, split, need_masks):
        """Return the `PairDataset` of a split, see `data.open_dataset`."""
        require_all_slices(config.slices)
        return PairDataset(
            self.find_pairs(config.data_dir, split),
            self.label_map(config, need_masks),
            size,
            need_masks,
            config.upstream_compat,
            config.data_dir,
            self.expected,
        )

    def list_truths(self, config, split):
        """Return the list of `Truth` of a split, see `data.list_truths`."""
        require_all_slices(config.slices)
        pairs = self.find_pairs(config.data_dir, split)
        return pair_truths(pairs, self.label_map(config, True), config.data_dir, self.expected)

    def list_files(self, config, split, need_masks):
        """Return (normalisation, list of `ListedFile`) of a split, see `data.list_files`."""
        require_all_slices(config.slices)
        pairs = self.find_pairs(config.data_dir, split)
        return RGB_RULE, files_of_pairs(pairs, self.label_map(config, True), need_masks, require_picture)


@dataclass(frozen=True, kw_only=True)
class VolumeLayout(Layout):
    """A layout of volumes that are used slice by slice.

    find_cases: function (data_dir, split) -> list of `CaseFiles`.
    parts:      `VolumeParts` of a case.
    """

    find_cases: Callable
    parts: VolumeParts

    def open_dataset(self, config, size, split, need_masks):
        """Return the `VolumeDataset` of a split, see `data.open_dataset`."""
        return VolumeDataset(
            self.find_cases(config.data_dir, split),
            self.parts,
            self.label_map(config, need_masks),
            size,
            config.slices,
            need_masks,
            config.upstream_compat,
            config.data_dir,
            orientation=config.orientation,
        )

    def list_truths(self, config, split):
        """Return the list of `Truth` of a split, see `data.list_truths`."""
        cases = self.find_cases(config.data_dir, split)
        return volume_truths(
            cases, self.parts, self.label_map(config, True), config.slices, config.data_dir, config.orientation
        )

    def list_files(self, config, split, need_masks):
        """Return (normalisation, list of `ListedFile`) of a split, see `data.list_files`."""
        cases = self.find_cases(config.data_dir, split)
        label_map = self.label_map(config, True)
        return self.parts.normalisation, files_of_volumes(cases, self.parts, label_map, need_masks)

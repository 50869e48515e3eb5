"""Plain folders of volumes: `images/NAME.nii.gz` next to `masks/NAME.nii.gz`, one channel; or other formats."""

import blobfile as bf

from guided_diffusion_core.data import folders
from guided_diffusion_core.data.check.inventory import files_of_pairs
from guided_diffusion_core.data.formats.transforms import ZSCORE_ALL_RULE, zscore_all
from guided_diffusion_core.data.formats.volumes import stem, suffix_of
from guided_diffusion_core.data.layout import Layout
from guided_diffusion_core.data.pairs import picture_stem, require_paired, unpaired_errors
from guided_diffusion_core.data.series import with_series
from guided_diffusion_core.data.volume_cases import CaseFiles, VolumeDataset, VolumeParts, volume_truths
from guided_diffusion_core.errors import found_expected, report

IMAGE = "image"
MASK = "mask"
PARTS = VolumeParts((IMAGE,), MASK, (zscore_all,), ZSCORE_ALL_RULE)
EXPECTED = (
    "images/NAME.nii.gz next to masks/NAME.nii.gz (or NAME_mask.nii.gz, …; also .nii, .mha, .mhd, .nrrd, .npy, and "
    "folders of DICOM files images/NAME/), and labels.json "
    "next to these folders if the masks hold several labels"
)


def find_pairs(data_dir, split):
    """Return the volumes of a split and their masks, a list of `Pair`, see `folders.find_pairs`."""
    return folders.find_pairs(data_dir, split, stem, EXPECTED, _gather)


class PlainVolumes(Layout):
    """The layout of plain folders of volumes. Its files are paired like pictures and used slice by slice."""

    def choose_labels(self, config, need_values):
        """Return the `LabelMap` of the labels that a `DataConfig` chooses, see `folders.folder_labels`."""
        return folders.folder_labels(config.data_dir, config.labels, need_values)

    def open_dataset(self, config, size, split, need_masks):
        """Return the `VolumeDataset` of a split, see `data.open_dataset`."""
        pairs = find_pairs(config.data_dir, split)
        if all(pair.image is None for pair in pairs):
            error = found_expected(f"--data_dir {config.data_dir!r}", "masks but no image", EXPECTED, "Check the path.")
            report(error, unpaired_errors(pairs))
        if need_masks:
            require_paired(pairs, config.data_dir, EXPECTED)
        return VolumeDataset(
            [_case(pair) for pair in pairs if pair.image is not None],
            PARTS,
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
        pairs = find_pairs(config.data_dir, split)
        require_paired([pair for pair in pairs if pair.image is not None], config.data_dir, EXPECTED)
        cases = [_case(pair) for pair in pairs]
        return volume_truths(
            cases, PARTS, self.label_map(config, True), config.slices, config.data_dir, config.orientation
        )

    def list_files(self, config, split, need_masks):
        """Return (normalisation, list of `ListedFile`) of a split, see `data.list_files`."""
        pairs = find_pairs(config.data_dir, split)
        return PARTS.normalisation, files_of_pairs(pairs, self.label_map(config, True), need_masks)


def _case(pair):
    """Return the `CaseFiles` of a pair, in which the image or the mask may be missing."""
    paths = {IMAGE: pair.image, MASK: pair.mask}
    present = {part: path for part, path in paths.items() if path is not None}
    return CaseFiles(pair.name, bf.dirname(pair.image or pair.mask), present)


def _signs(files):
    """Return the names of the volumes; arrays of numpy next to pictures are not the data."""
    has_pictures = any(picture_stem(file.name) for file in files)
    volumes = [file for file in _gather(files) if stem(file.name) is not None]
    return [file.shown for file in volumes if not (has_pictures and suffix_of(file.name) == ".npy")]


def _gather(files):
    """Return the files of a folder of data with one file for each DICOM series."""
    return with_series(files, folders.folder_kind)


LAYOUT = PlainVolumes(
    name="VOLUMES",
    summary="plain images/ and masks/, volumes",
    order=70,
    expected=EXPECTED,
    signs=_signs,
    is_general=True,
)

"""Plain folders of volumes: `images/NAME.nii.gz` beside `masks/NAME.nii.gz`, one channel."""

import blobfile as bf

from guided_diffusion_core.data.check.inventory import files_of_pairs
from guided_diffusion_core.data.formats.transforms import ZSCORE_ALL_RULE, zscore_all
from guided_diffusion_core.data.formats.volumes import stem
from guided_diffusion_core.data.layouts.folders import find_pairs, folder_labels
from guided_diffusion_core.data.pairs import require_paired
from guided_diffusion_core.data.volume_cases import CaseFiles, VolumeDataset, VolumeLayout, volume_truths
from guided_diffusion_core.errors import found_expected

IMAGE = "image"
MASK = "mask"
PLAIN = VolumeLayout((IMAGE,), MASK, (zscore_all,), ZSCORE_ALL_RULE)
LAYOUT = (
    "images/NAME.nii.gz beside masks/NAME.nii.gz (or NAME_mask.nii.gz, …; .nii too), with labels.json "
    "beside where the masks hold several labels"
)


def open_dataset(config, size, split, need_masks):
    """See `data.open_dataset`."""
    pairs = find_pairs(config.data_dir, split, stem, LAYOUT)
    if all(pair.image is None for pair in pairs):
        raise found_expected(f"--data_dir {config.data_dir!r}", "masks but no image", LAYOUT, "Check the path.")
    if need_masks:
        require_paired(pairs, config.data_dir, LAYOUT)
    label_map = folder_labels(config.data_dir, config.labels, need_masks)
    cases = [_files(pair) for pair in pairs if pair.image is not None]
    return VolumeDataset(
        cases, PLAIN, label_map, size, config.slices, need_masks, config.upstream_compat, config.data_dir
    )


def open_truths(config, split):
    """See `data.list_truths`."""
    pairs = find_pairs(config.data_dir, split, stem, LAYOUT)
    require_paired([pair for pair in pairs if pair.image is not None], config.data_dir, LAYOUT)
    label_map = folder_labels(config.data_dir, config.labels, True)
    return volume_truths([_files(pair) for pair in pairs], PLAIN, label_map, config.slices, config.data_dir)


def list_files(config, split, need_masks):
    """See `data.list_files`."""
    pairs = find_pairs(config.data_dir, split, stem, LAYOUT)
    label_map = folder_labels(config.data_dir, config.labels, True)
    return PLAIN.normalisation, files_of_pairs(pairs, label_map, need_masks)


def _files(pair):
    paths = {part: path for part, path in ((IMAGE, pair.image), (MASK, pair.mask)) if path is not None}
    return CaseFiles(pair.name, bf.dirname(pair.image or pair.mask), paths)

"""Plain folders of pictures: `images/` beside `masks/`, PNG, JPEG, TIFF or BMP."""

from guided_diffusion_core.data.check.inventory import files_of_pairs
from guided_diffusion_core.data.formats.transforms import RGB_RULE
from guided_diffusion_core.data.layouts.folders import find_pairs, folder_labels
from guided_diffusion_core.data.pairs import PairDataset, pair_truths, picture_stem

LAYOUT = (
    "images/NAME.png beside masks/NAME.png (or NAME_mask.png, …; jpg, tif and bmp too), with labels.json "
    "beside where the masks hold several labels"
)


def open_dataset(config, size, split, need_masks):
    """See `data.open_dataset`."""
    pairs = find_pairs(config.data_dir, split, picture_stem, LAYOUT)
    label_map = folder_labels(config.data_dir, config.labels, need_masks, plain=True)
    return PairDataset(pairs, label_map, size, need_masks, config.upstream_compat, config.data_dir, LAYOUT)


def open_truths(config, split):
    """See `data.list_truths`."""
    pairs = find_pairs(config.data_dir, split, picture_stem, LAYOUT)
    label_map = folder_labels(config.data_dir, config.labels, True, plain=True)
    return pair_truths(pairs, label_map, config.data_dir, LAYOUT)


def list_files(config, split, need_masks):
    """See `data.list_files`."""
    pairs = find_pairs(config.data_dir, split, picture_stem, LAYOUT)
    label_map = folder_labels(config.data_dir, config.labels, True, plain=True)
    return RGB_RULE, files_of_pairs(pairs, label_map, need_masks)

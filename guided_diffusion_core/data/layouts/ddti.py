"""DDTI: ultrasound pictures of the thyroid, `images/1.PNG` beside `masks/1.PNG`, grey, nodules 255."""

from guided_diffusion_core.data.check.inventory import files_of_pairs
from guided_diffusion_core.data.formats.labels import SINGLE, LabelMap
from guided_diffusion_core.data.formats.transforms import RGB_RULE
from guided_diffusion_core.data.layouts.folders import find_pairs
from guided_diffusion_core.data.pairs import PairDataset, pair_truths, picture_stem

LABELS = LabelMap()
DEFAULT_LABELS = (SINGLE,)
LAYOUT = "images/1.PNG beside masks/1.PNG"


def open_dataset(config, size, split, need_masks):
    """See `data.open_dataset`."""
    pairs = find_pairs(config.data_dir, split, picture_stem, LAYOUT)
    return PairDataset(
        pairs,
        LABELS.select(config.labels, DEFAULT_LABELS),
        size,
        need_masks,
        config.upstream_compat,
        config.data_dir,
        LAYOUT,
    )


def open_truths(config, split):
    """See `data.list_truths`."""
    pairs = find_pairs(config.data_dir, split, picture_stem, LAYOUT)
    return pair_truths(pairs, LABELS.select(config.labels, DEFAULT_LABELS), config.data_dir, LAYOUT)


def list_files(config, split, need_masks):
    """See `data.list_files`."""
    pairs = find_pairs(config.data_dir, split, picture_stem, LAYOUT)
    return RGB_RULE, files_of_pairs(pairs, LABELS.select(config.labels, DEFAULT_LABELS), need_masks)

"""REFUGE and REFUGE2: fundus photographs, and masks that hold the optic disc and its cup as grey values."""

import re

import blobfile as bf

from guided_diffusion_core.data.check.inventory import files_of_pairs
from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.formats.transforms import RGB_RULE
from guided_diffusion_core.data.pairs import PairDataset, pair_by_stem, pair_truths, picture_stem
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import require_folder, walk_files

CUP = 0
RIM = 128
BACKGROUND = 255
LABELS = LabelMap(
    names=("disc", "cup"), values=(frozenset({CUP, RIM}), frozenset({CUP})), known=frozenset({BACKGROUND})
)
DEFAULT_LABELS = ("disc", "cup")
MASK_FOLDER = re.compile(r"(^|[_-])masks?$", re.IGNORECASE)
ILLUSTRATIONS = re.compile(r"illustration", re.IGNORECASE)
LAYOUT = (
    "pictures such as T0001.jpg, and in a folder Disc_Cup_Masks masks such as T0001.png or T0001.bmp, of "
    "cup 0, rim 128 and background 255"
)


def find_pairs(data_dir):
    """All pictures under a folder with their masks, a list of `Pair` by name.

    Masks are what lies under a folder Disc_Cup_Masks (or masks), at any depth; all else are pictures, of
    which one in a folder *Illustration* gives way to one of the same name elsewhere.
    Raises `UserError` if the folder is missing or holds no picture, and as `pair_by_stem`.
    """
    data_dir = require_folder(data_dir, "--data_dir", LAYOUT)
    images = []
    illustrations = []
    masks = []
    for folder, file in walk_files(data_dir):
        name = picture_stem(file)
        path = bf.join(folder, file)
        parts = folder[len(data_dir) :].split("/")
        if name is None:
            continue
        if any(map(MASK_FOLDER.search, [*parts, bf.basename(data_dir.rstrip("/"))])):
            masks.append((name, path))
        else:
            (illustrations if any(map(ILLUSTRATIONS.search, parts)) else images).append((name, path))
    if not images and not illustrations and not masks:
        raise found_expected(f"--data_dir {data_dir!r}", "no picture", LAYOUT, "Check the path.")
    taken = {name.lower() for name, _ in images}
    images += [(name, path) for name, path in illustrations if name.lower() not in taken]
    return pair_by_stem(images, masks, f"--data_dir {data_dir!r}")


def open_dataset(config, size, split, need_masks):
    """See `data.open_dataset`; all pictures are used, whatever the split."""
    return PairDataset(
        find_pairs(config.data_dir),
        LABELS.select(config.labels, DEFAULT_LABELS),
        size,
        need_masks,
        config.upstream_compat,
        config.data_dir,
        LAYOUT,
    )


def open_truths(config, split):
    """See `data.list_truths`."""
    return pair_truths(
        find_pairs(config.data_dir), LABELS.select(config.labels, DEFAULT_LABELS), config.data_dir, LAYOUT
    )


def list_files(config, split, need_masks):
    """See `data.list_files`."""
    pairs = find_pairs(config.data_dir)
    return RGB_RULE, files_of_pairs(pairs, LABELS.select(config.labels, DEFAULT_LABELS), need_masks)

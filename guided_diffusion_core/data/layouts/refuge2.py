"""REFUGE and REFUGE2: fundus photographs, and masks that hold the optic disc and its cup as grey values."""

import re

import blobfile as bf

from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.found import find_files, nothing_found
from guided_diffusion_core.data.layout import PictureLayout
from guided_diffusion_core.data.names import name_key
from guided_diffusion_core.data.pairs import pair_by_stem, picture_stem
from guided_diffusion_core.data.splits import choose_unless_test
from guided_diffusion_core.system.files import require_folder

CUP = 0
RIM = 128  # the part of the disc around the cup
BACKGROUND = 255
LABELS = LabelMap(
    names=("disc", "cup"), values=(frozenset({CUP, RIM}), frozenset({CUP})), known=frozenset({BACKGROUND})
)
MASK_FOLDER = re.compile(r"(^|[_-])masks?$", re.IGNORECASE)
DISC_CUP_FOLDER = re.compile(r"disc_cup_masks?", re.IGNORECASE)
ILLUSTRATION_FOLDER = re.compile(r"illustration", re.IGNORECASE)
EXPECTED = (
    "pictures such as T0001.jpg, and a folder Disc_Cup_Masks of masks such as T0001.png or T0001.bmp with the "
    "values 0 for the cup, 128 for the rim and 255 for the background"
)


def find_pairs(data_dir, split):
    """Return the pictures of a split under a folder and their masks, a list of `Pair` by name.

    Files under a folder Disc_Cup_Masks (or masks), at any depth, are masks; all other files are pictures. A picture
    under a folder *Illustration* is dropped if another folder has a picture of the same name. The test set is
    everything under the folder, see `splits.choose_unless_test`.
    Raises `UserError` if the folder is missing or holds no picture, and for the errors of `pair_by_stem`.
    """
    data_dir = require_folder(data_dir, "--data_dir", EXPECTED)
    files = find_files(data_dir, lambda name: picture_stem(name) is not None)
    if not files:
        raise nothing_found(data_dir, EXPECTED)
    where = f"--data_dir {data_dir!r}"
    images = []
    illustrations = []
    masks = []
    data_dir_name = bf.basename(data_dir.rstrip("/"))
    for file in choose_unless_test(files, split, where):
        if any(MASK_FOLDER.search(part) for part in [*file.parts, data_dir_name]):
            found = masks
        elif any(ILLUSTRATION_FOLDER.search(part) for part in file.parts):
            found = illustrations
        else:
            found = images
        found.append((picture_stem(file.name), file.path))
    # a folder of illustrations may hold copies of the photographs under the same names
    taken = {name_key(name) for name, _ in images}
    images += [(name, path) for name, path in illustrations if name_key(name) not in taken]
    return pair_by_stem(images, masks, where)


def _signs(files):
    """Return the names of the folders Disc_Cup_Masks."""
    return sorted({part for file in files for part in file.parts if DISC_CUP_FOLDER.fullmatch(part)})


LAYOUT = PictureLayout(
    name="REFUGE2",
    summary="optic disc and cup",
    order=40,
    expected=EXPECTED,
    labels=LABELS,
    default_labels=("disc", "cup"),
    find_pairs=find_pairs,
    signs=_signs,
)

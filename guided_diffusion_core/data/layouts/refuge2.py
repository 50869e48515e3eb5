"""REFUGE and REFUGE2: fundus photographs, and masks that hold the optic disc and its cup as grey values."""

import re

import blobfile as bf

from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.layout import PictureLayout
from guided_diffusion_core.data.pairs import pair_by_stem, picture_stem
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import require_folder, walk_files

CUP = 0
RIM = 128  # the part of the disc around the cup
BACKGROUND = 255
LABELS = LabelMap(
    names=("disc", "cup"), values=(frozenset({CUP, RIM}), frozenset({CUP})), known=frozenset({BACKGROUND})
)
MASK_FOLDER = re.compile(r"(^|[_-])masks?$", re.IGNORECASE)
ILLUSTRATION_FOLDER = re.compile(r"illustration", re.IGNORECASE)
EXPECTED = (
    "pictures such as T0001.jpg, and a folder Disc_Cup_Masks of masks such as T0001.png or T0001.bmp with the "
    "values 0 for the cup, 128 for the rim and 255 for the background"
)


def find_pairs(data_dir, split=None):
    """Return all pictures under a folder and their masks, a list of `Pair` by name. The split does not matter.

    Files under a folder Disc_Cup_Masks (or masks), at any depth, are masks; all other files are pictures. A picture
    under a folder *Illustration* is dropped if another folder has a picture of the same name.
    Raises `UserError` if the folder is missing or holds no picture, and for the errors of `pair_by_stem`.
    """
    data_dir = require_folder(data_dir, "--data_dir", EXPECTED)
    images = []
    illustrations = []
    masks = []
    data_dir_name = bf.basename(data_dir.rstrip("/"))
    for folder, file in walk_files(data_dir):
        name = picture_stem(file)
        if name is None:
            continue
        subfolders = folder[len(data_dir) :].split("/")
        if any(MASK_FOLDER.search(part) for part in [*subfolders, data_dir_name]):
            files = masks
        elif any(ILLUSTRATION_FOLDER.search(part) for part in subfolders):
            files = illustrations
        else:
            files = images
        files.append((name, bf.join(folder, file)))
    if not images and not illustrations and not masks:
        raise found_expected(f"--data_dir {data_dir!r}", "no picture", EXPECTED, "Check the path.")
    # a folder of illustrations may hold copies of the photographs under the same names
    taken = {name.lower() for name, _ in images}
    images += [(name, path) for name, path in illustrations if name.lower() not in taken]
    return pair_by_stem(images, masks, f"--data_dir {data_dir!r}")


LAYOUT = PictureLayout(
    name="REFUGE2",
    summary="optic disc and cup",
    order=40,
    expected=EXPECTED,
    labels=LABELS,
    default_labels=("disc", "cup"),
    find_pairs=find_pairs,
)

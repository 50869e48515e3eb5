"""Plain folders of pictures: `images/` next to `masks/`, PNG, JPEG, TIFF or BMP."""

from guided_diffusion_core.data import folders
from guided_diffusion_core.data.layout import PictureLayout
from guided_diffusion_core.data.pairs import picture_stem

EXPECTED = (
    "images/NAME.png next to masks/NAME.png (or NAME_mask.png, …; also jpg, tif and bmp), and labels.json "
    "next to these folders if the masks hold several labels"
)


def find_pairs(data_dir, split):
    """Return the pictures of a split and their masks, a list of `Pair`, see `folders.find_pairs`."""
    return folders.find_pairs(data_dir, split, picture_stem, EXPECTED)


def _signs(files):
    """Return the names of the pictures."""
    return [file.shown for file in files if picture_stem(file.name) is not None]


LAYOUT = PictureLayout(
    name="IMAGES",
    summary="plain images/ and masks/, pictures",
    order=60,
    expected=EXPECTED,
    find_pairs=find_pairs,
    signs=_signs,
    is_general=True,
)

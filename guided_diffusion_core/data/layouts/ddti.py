"""DDTI: grey ultrasound pictures of the thyroid, `images/1.PNG` next to `masks/1.PNG`, with nodules of value 255."""

from guided_diffusion_core.data import folders
from guided_diffusion_core.data.formats.labels import SINGLE, LabelMap
from guided_diffusion_core.data.layout import PictureLayout
from guided_diffusion_core.data.pairs import picture_stem

EXPECTED = "images/1.PNG next to masks/1.PNG"


def find_pairs(data_dir, split):
    """Return the pictures of a split and their masks, a list of `Pair`, see `folders.find_pairs`."""
    return folders.find_pairs(data_dir, split, picture_stem, EXPECTED)


LAYOUT = PictureLayout(
    name="DDTI",
    summary="thyroid nodules in ultrasound",
    order=50,
    expected=EXPECTED,
    labels=LabelMap(),
    default_labels=(SINGLE,),
    find_pairs=find_pairs,
)

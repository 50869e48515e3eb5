"""ISIC layout: folders of images beside folders of masks, a csv of pairs, or a plain folder."""
import csv
import re
from dataclasses import dataclass
from typing import Optional

import blobfile as bf
import numpy as np

from guided_diffusion_core.data.dataset import Case, Example, Truth, listed, require_unique
from guided_diffusion_core.data.images import image_size, read_masks, read_rgb
from guided_diffusion_core.data.labels import SINGLE, LabelMap
from guided_diffusion_core.data.transforms import RGB_RULE
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.files import read_bytes, require_folder, walk_files

IMAGE_SUFFIX = re.compile(r"\.(jpg|jpeg|png)$", re.IGNORECASE)
DATA_FOLDER = re.compile(r"_data$", re.IGNORECASE)
TRUTH_FOLDER = re.compile(r"_groundtruth$", re.IGNORECASE)
MASK_STEM = re.compile(r"_segmentation$", re.IGNORECASE)
SPLIT_WORDS = {"Training": "train", "Test": "test"}  # how folder names speak of the splits
CSV_ENCODINGS = ("utf-8-sig", "gbk")
LAYOUT = ("*_Data/ISIC_0000000.jpg beside *_GroundTruth/ISIC_0000000_Segmentation.png, or a csv "
          "*_GroundTruth.csv with the header ,img,seg (a plain folder of images serves for sampling only)")


@dataclass(frozen=True)
class Pair:
    """An image (or None where only the truth is wanted) and its mask (or None), by case name."""

    name: str
    image: Optional[str]
    mask: Optional[str]


def find_pairs(data_dir, split):
    """All images of a split with their masks, a list of `Pair` by name; mask None where there is none.

    The first that there is of: a csv `*_{split}_GroundTruth.csv` in `data_dir` with the columns img
    and seg; folders `*_Data`, masks in the sibling `*_GroundTruth`; images in any folders, without
    masks. Of several `*_Data` folders those count whose name has the split ("train" or "test"), or
    all if none has.
    Raises `UserError` if the folder is missing or holds no image, and for a name used twice.
    """
    data_dir = require_folder(data_dir, "--data_dir", LAYOUT)
    pairs = _pairs_of_csv(data_dir, split)
    if pairs is None:
        pairs = _pairs_of_folders(data_dir, split)
    if not pairs:
        raise found_expected(f"--data_dir {data_dir!r}", "no image (jpg, jpeg or png)", LAYOUT,
                             "Check the path.")
    paths_by_name = {}
    for pair in pairs:
        paths_by_name.setdefault(pair.name, []).append(pair.image or pair.mask)
    require_unique(paths_by_name, f"--data_dir {data_dir!r}")
    return sorted(pairs, key=lambda pair: pair.name)


def _pairs_of_csv(data_dir, split):
    """The pairs that a csv of the split lists, or None without such a csv."""
    ending = f"_{split}_groundtruth.csv".lower()
    for file in sorted(bf.listdir(data_dir)):
        if file.lower().endswith(ending) and not file.startswith("."):
            rows = _read_csv(bf.join(data_dir, file))
            if rows and {"img", "seg"} <= set(rows[0]):
                return [_pair_of_row(data_dir, bf.join(data_dir, file), row) for row in rows]
    return None


def _read_csv(path):
    content = read_bytes(path)
    for encoding in CSV_ENCODINGS:
        try:
            return list(csv.DictReader(content.decode(encoding).splitlines()))
        except UnicodeDecodeError:
            continue
    raise found_expected(path, "text of an unknown encoding", "utf-8 or gbk", "Save the file as utf-8.")


def _pair_of_row(data_dir, table, row):
    if not row["img"]:
        raise found_expected(table, "a row without an image", "its path in column img", "Mend the row.")
    image, mask = (bf.join(data_dir, (row[key] or "").replace("\\", "/")) for key in ("img", "seg"))
    if not bf.exists(image):
        raise found_expected(table, f"{image}, which is not there", "paths relative to the csv's folder",
                             "Mend the csv or add the file.")
    name = _stem(bf.basename(image))
    if name is None:
        raise found_expected(table, f"{image}, which is no image", "a jpg, jpeg or png file", "Mend the csv.")
    return Pair(name, image, mask if row["seg"] and bf.exists(mask) else None)


def _pairs_of_folders(data_dir, split):
    """Pairs from `*_Data` folders and their siblings, else images (or masks) of any folder, alone."""
    images, masks = _files_by_folder(data_dir)
    data_folders = [folder for folder in images if DATA_FOLDER.search(bf.basename(folder))]
    if data_folders:
        chosen = _of_split(data_folders, split)
        return [pair for folder in chosen for pair in _pairs_beside(folder, images[folder])]
    if images:
        return [Pair(name, path, None) for files in images.values() for name, path in files]
    chosen = _of_split(list(masks), split)
    return [Pair(name, None, path) for folder in chosen for name, path in masks[folder]]


def _files_by_folder(data_dir):
    """Two dicts folder -> [(case name, path)]: images, and masks (in a folder *_GroundTruth or named
    *_Segmentation)."""
    images, masks = {}, {}
    for folder, file in walk_files(data_dir):
        name = _stem(file)
        if name is None or name.lower().endswith("_superpixels"):  # ISIC 2017 keeps these beside the images
            continue
        is_mask = MASK_STEM.search(name) or TRUTH_FOLDER.search(bf.basename(folder))
        kind = masks if is_mask else images
        kind.setdefault(folder, []).append((MASK_STEM.sub("", name), bf.join(folder, file)))
    return images, masks


def _of_split(folders, split):
    word = SPLIT_WORDS[split]
    return [folder for folder in folders if word in bf.basename(folder).lower()] or folders


def _pairs_beside(folder, images):
    """Pair the images of a `*_Data` folder with the masks of the sibling of the same beginning."""
    parent = bf.dirname(folder) or "."
    wanted = DATA_FOLDER.sub("_groundtruth", bf.basename(folder)).lower()
    masks = {}
    for sibling in sorted(bf.listdir(parent)):
        if sibling.lower() == wanted:
            truth_folder = bf.join(parent, sibling)
            for file in sorted(bf.listdir(truth_folder)):
                name = _stem(file)
                if name is not None and not file.startswith("."):
                    masks.setdefault(MASK_STEM.sub("", name).lower(), bf.join(truth_folder, file))
    return [Pair(name, path, masks.get(name.lower())) for name, path in images]


def _stem(file):
    """A picture's file name without its extension; None for other files."""
    return IMAGE_SUFFIX.sub("", file) if IMAGE_SUFFIX.search(file) else None


def _require_masks(pairs, data_dir):
    lacking = [pair.name for pair in pairs if pair.mask is None]
    if lacking:
        raise UserError(
            f"--data_dir {data_dir!r}: found {len(lacking)} of {len(pairs)} images without a mask "
            f"({listed(lacking)}); expected {LAYOUT}. Add the masks or take the images out.")


class IsicDataset:
    """Colour images with one mask each (`Dataset`); every pair's sizes are checked here.

    data_dir:        folder of the set, see `find_pairs`.
    size:            side of the network input in pixels.
    split:           "Training" or "Test".
    need_masks:      False for label-free sampling: masks are neither asked for nor given.
    upstream_compat: masks as the original resizes them, bilinearly and then above zero.
    Raises `UserError` for missing masks, masks of another shape and files that are no images.
    """

    in_channels = 3
    normalisation = RGB_RULE

    def __init__(self, data_dir, size, split, need_masks=True, upstream_compat=False, labels=""):
        self._label_map = LabelMap().select(labels, (SINGLE,))
        self.labels = self._label_map.names
        self.size, self.need_masks, self.upstream_compat = size, need_masks, upstream_compat
        self._pairs = find_pairs(data_dir, split)
        if self._pairs[0].image is None:
            raise found_expected(f"--data_dir {str(data_dir)!r}", "masks but no image", LAYOUT,
                                 "Check the path.")
        if need_masks:
            _require_masks(self._pairs, data_dir)
        self._shapes = [self._checked_shape(pair) for pair in self._pairs]

    def _checked_shape(self, pair):
        shape = image_size(pair.image)
        mask_shape = image_size(pair.mask) if self.need_masks else shape
        if mask_shape != shape:
            raise found_expected(pair.mask, f"a mask of {_pixels(mask_shape)}",
                                 f"{_pixels(shape)} as its image {pair.image}", "Use the mask of that image.")
        return shape

    def __len__(self):
        return len(self._pairs)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        pair, mask = self._pairs[index], None
        if self.need_masks:
            mask = read_masks(pair.mask, self._label_map, self.size, self.upstream_compat).astype(np.float32)
        return Example(read_rgb(pair.image, self.size), mask, pair.name)

    def cases(self):
        """One case for each image."""
        together = zip(self._pairs, self._shapes)
        return [Case(pair.name, (index,), shape) for index, (pair, shape) in enumerate(together)]


def list_truths(data_dir, split="Test", labels=""):
    """The ground truth of every case of a split, a list of `Truth`.

    data_dir: folder of the set, or of the masks alone. Raises `UserError` for missing masks.
    """
    pairs = find_pairs(data_dir, split)
    _require_masks(pairs, data_dir)
    label_map = LabelMap().select(labels, (SINGLE,))
    return [Truth(pair.name, pair.mask, label_map=label_map) for pair in pairs]


def _pixels(shape):
    return f"{shape[1]} x {shape[0]} pixels (width x height)"

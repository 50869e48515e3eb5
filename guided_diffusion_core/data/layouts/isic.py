"""ISIC 2016 to 2018: folders of images next to folders of masks, a csv file of pairs, or a plain folder of images."""

import csv
import re

import blobfile as bf

from guided_diffusion_core.data.dataset import require_unique
from guided_diffusion_core.data.formats.images import read_rgb
from guided_diffusion_core.data.formats.labels import SINGLE, LabelMap
from guided_diffusion_core.data.layout import PictureLayout
from guided_diffusion_core.data.pairs import Pair
from guided_diffusion_core.errors import found_expected, report
from guided_diffusion_core.system.files import read_bytes, require_folder, walk_files

IMAGE_SUFFIX = re.compile(r"\.(jpg|jpeg|png)$", re.IGNORECASE)
IMAGE_FOLDER = re.compile(r"_(data|input)$", re.IGNORECASE)  # *_Input since 2018
MASK_FOLDER = re.compile(r"_groundtruth$", re.IGNORECASE)
MASK_STEM = re.compile(r"_segmentation$", re.IGNORECASE)
SUPERPIXEL_STEM = "_superpixels"  # ISIC 2017 stores superpixels next to the images
TASK = re.compile(r"_(part1|task1|task1-2)(?=_|$)", re.IGNORECASE)  # the task of a challenge that is segmentation
SPLIT_WORDS = {"Training": "train", "Test": "test"}  # what the folder names of a split contain
CSV_ENCODINGS = ("utf-8-sig", "gbk")
CSV_DELIMITERS = ",;\t|"
CSV_COLUMNS = {"img": "img", "image": "img", "seg": "seg", "mask": "seg"}  # name in the header -> name used here
EXPECTED = (
    "*_Data/ISIC_0000000.jpg next to *_GroundTruth/ISIC_0000000_Segmentation.png, or a csv file "
    "*_GroundTruth.csv with the header ,img,seg (for sampling, a plain folder of images is enough)"
)


def find_pairs(data_dir, split):
    """Return all images of a split and their masks, a list of `Pair` by name. The mask may be None.

    The first of these that exists is used:
    - a csv file `*_{split}_GroundTruth.csv` in `data_dir` with the columns img and seg (or image and mask);
    - folders `*_Data` or `*_Input`, with the masks in the folder `*_GroundTruth` next to each. If the names of some
      of these folders contain the split ("train" or "test"), only those are used;
    - images in any folders, without masks.
    Raises `UserError` if the folder is missing or holds no image, and for a name that is used twice.
    """
    data_dir = require_folder(data_dir, "--data_dir", EXPECTED)
    pairs = _pairs_of_csv(data_dir, split)
    if pairs is None:
        pairs = _pairs_of_folders(data_dir, split)
    if not pairs:
        raise found_expected(f"--data_dir {data_dir!r}", "no image (jpg, jpeg or png)", EXPECTED, "Check the path.")
    # two folders may hold the same case
    paths_by_name = {}
    for pair in pairs:
        paths_by_name.setdefault(pair.name, []).append(pair.image or pair.mask)
    require_unique(paths_by_name, f"--data_dir {data_dir!r}")
    return sorted(pairs, key=lambda pair: pair.name)


def _pairs_of_csv(data_dir, split):
    """Return the pairs in the csv file of a split, or None if there is no such file."""
    ending = f"_{split}_groundtruth.csv".lower()
    for file in sorted(bf.listdir(data_dir)):
        if not file.lower().endswith(ending) or file.startswith("."):
            continue
        # csv files of other tasks, such as the classes of ISIC, have other columns and are ignored
        table = bf.join(data_dir, file)
        rows = _read_csv(table)
        if rows and {"img", "seg"} <= set(rows[0]):
            pairs = [_pair_of_row(data_dir, table, row) for row in rows]
            return [pair for pair in pairs if pair]
    return None


def _read_csv(path):
    """Return the rows of a csv file as dicts, with the keys "img" and "seg" if the header has such columns.

    The delimiter is the character of `CSV_DELIMITERS` that occurs most often in the header.
    """
    lines = _decode(read_bytes(path), path).splitlines()
    delimiter = max(CSV_DELIMITERS, key=lines[0].count) if lines else ","
    rows = []
    for row in csv.DictReader(lines, delimiter=delimiter):
        # the key of surplus cells is None
        rows.append({CSV_COLUMNS.get((column or "").strip().lower(), column): value for column, value in row.items()})
    return rows


def _decode(content, path):
    """Return the text of a csv file. Raises `UserError` if no encoding of `CSV_ENCODINGS` fits."""
    for encoding in CSV_ENCODINGS:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise found_expected(path, "text of an unknown encoding", "utf-8 or gbk", "Save the file as utf-8.")


def _pair_of_row(data_dir, table, row):
    """Return the `Pair` of one row in a csv file, or report what is wrong with the row and return None."""
    if not row["img"]:
        report(found_expected(table, "a row without an image", "its path in the column img", "Fix the row."))
        return None
    image = _path_of_cell(data_dir, row["img"])
    mask = _path_of_cell(data_dir, row["seg"])
    name = _stem(bf.basename(image))
    if name is None:
        report(found_expected(table, f"{image}, which is not an image", "a jpg, jpeg or png file", "Fix the csv file."))
        return None
    if not bf.exists(image):
        report(
            found_expected(
                table,
                f"{image}, which does not exist",
                "paths relative to the folder of the csv file",
                "Fix the csv file, or add the image.",
            )
        )
        return None
    has_mask = row["seg"] and bf.exists(mask)
    return Pair(name, image, mask if has_mask else None)


def _path_of_cell(data_dir, value):
    """Return the path in a cell, which is relative to the folder of the data and may be written for Windows."""
    return bf.join(data_dir, (value or "").replace("\\", "/"))


def _pairs_of_folders(data_dir, split):
    """Return the pairs of `*_Data` folders, or else all images (or all masks) under the folder without a partner."""
    images, masks = _files_by_folder(data_dir)
    image_folders = [folder for folder in images if IMAGE_FOLDER.search(bf.basename(folder))]
    pairs = []
    if image_folders:
        for folder in _folders_of_split(image_folders, split):
            pairs += _pairs_of_image_folder(folder, images[folder])
    elif images:
        for files in images.values():
            pairs += [Pair(name, path, None) for name, path in files]
    else:
        for folder in _folders_of_split(list(masks), split):
            pairs += [Pair(name, None, path) for name, path in masks[folder]]
    return pairs


def _files_by_folder(data_dir):
    """Return two dicts of folder -> list of (case name, path): images, and masks.

    Masks are in a folder *_GroundTruth or are named *_Segmentation.
    """
    images = {}
    masks = {}
    for folder, file in walk_files(data_dir):
        name = _stem(file)
        if name is None or name.lower().endswith(SUPERPIXEL_STEM):
            continue
        is_mask = MASK_STEM.search(name) or MASK_FOLDER.search(bf.basename(folder))
        files = masks if is_mask else images
        files.setdefault(folder, []).append((MASK_STEM.sub("", name), bf.join(folder, file)))
    return images, masks


def _folders_of_split(folders, split):
    """Return the folders whose names contain the split, or all folders if none does."""
    word = SPLIT_WORDS[split]
    return [folder for folder in folders if word in bf.basename(folder).lower()] or folders


def _pairs_of_image_folder(folder, images):
    """Pair the images of a `*_Data` folder with the masks of the `*_GroundTruth` folder next to it."""
    parent = bf.dirname(folder) or "."
    challenge = _challenge(IMAGE_FOLDER, folder)
    masks = {}
    for sibling in sorted(bf.listdir(parent)):
        if not MASK_FOLDER.search(sibling) or _challenge(MASK_FOLDER, sibling) != challenge:
            continue
        mask_folder = bf.join(parent, sibling)
        for file in sorted(bf.listdir(mask_folder)):
            name = _stem(file)
            if name is not None and not file.startswith("."):
                masks.setdefault(MASK_STEM.sub("", name).lower(), bf.join(mask_folder, file))
    return [Pair(name, path, masks.get(name.lower())) for name, path in images]


def _challenge(ending, folder):
    """Return the part of a folder's name that its images and its masks share.

    The task is removed too, because 2017 and 2018 name it differently in the two folders.
    """
    return TASK.sub("", ending.sub("", bf.basename(folder))).lower()


def _stem(file):
    """Return the file name of a picture without its extension, or None for other files."""
    return IMAGE_SUFFIX.sub("", file) if IMAGE_SUFFIX.search(file) else None


LAYOUT = PictureLayout(
    name="ISIC",
    summary="skin lesions of 2016, 2017 and 2018",
    order=10,
    expected=EXPECTED,
    labels=LabelMap(),
    default_labels=(SINGLE,),
    find_pairs=find_pairs,
    read_image=read_rgb,
)

"""ISIC 2016 to 2018: folders of images next to folders of masks, a csv file of pairs, or a plain folder of images."""

import csv
import re
from dataclasses import replace

import blobfile as bf

from guided_diffusion_core.data.dataset import require_unique
from guided_diffusion_core.data.formats.labels import SINGLE, LabelMap
from guided_diffusion_core.data.found import find_files, nothing_found
from guided_diffusion_core.data.layout import PictureLayout
from guided_diffusion_core.data.names import name_key, normal_form
from guided_diffusion_core.data.pairs import PICTURE_SUFFIX, Pair
from guided_diffusion_core.data.splits import choose_split
from guided_diffusion_core.data.walk import leave_out, walk_data
from guided_diffusion_core.errors import found_expected, report
from guided_diffusion_core.system.files import list_names, read_bytes, require_folder

IMAGE_FOLDER = re.compile(r"_(data|input)$", re.IGNORECASE)  # *_Input since 2018
MASK_FOLDER = re.compile(r"_groundtruth$", re.IGNORECASE)
CHALLENGE = re.compile(r"isic|isbi", re.IGNORECASE)
TABLE = re.compile(r"_(training|test)_groundtruth\.csv$", re.IGNORECASE)
MASK_STEM = re.compile(r"_segmentation$", re.IGNORECASE)
SUPERPIXEL_STEM = "_superpixels"  # ISIC 2017 stores superpixels next to the images
TASK = re.compile(r"_(part1|task1|task1-2)(?=_|$)", re.IGNORECASE)  # the task of a challenge that is segmentation
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
    - folders `*_Data` or `*_Input`, with the masks in the folder `*_GroundTruth` next to each;
    - images in any folders, without masks.
    Of folders, those of the split are used, or all if there are folders of other splits alone, see
    `splits.choose_split`.
    Raises `UserError` if the folder is missing or holds no image, and for a name that is used twice.
    """
    data_dir = require_folder(data_dir, "--data_dir", EXPECTED)
    pairs = _pairs_of_csv(data_dir, split)
    if pairs is None:
        pairs = _pairs_of_folders(data_dir, split)
    if not pairs:
        raise nothing_found(data_dir, EXPECTED)
    # two folders may hold the same case
    paths_by_name = {}
    for pair in pairs:
        paths_by_name.setdefault(pair.name, []).append(pair.image or pair.mask)
    require_unique(paths_by_name, f"--data_dir {data_dir!r}")
    return sorted(pairs, key=lambda pair: pair.name)


def _pairs_of_csv(data_dir, split):
    """Return the pairs in the csv file of a split, or None if there is no such file."""
    ending = f"_{split}_groundtruth.csv".lower()
    for file in list_names(data_dir):
        if not file.lower().endswith(ending) or file.startswith("."):
            continue
        # csv files of other tasks, such as the classes of ISIC, have other columns and are ignored
        table = bf.join(data_dir, file)
        rows = _read_csv(table)
        if rows and {"img", "seg"} <= set(rows[0]):
            pairs = [_pair_of_row(data_dir, table, row) for row in rows]
            return [pair for pair in pairs if pair]
        leave_out("csv file without the columns img and seg", file)
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
    name = _stem(normal_form(bf.basename(image)))
    if name is None:
        report(
            found_expected(table, f"{image}, which is not an image", "a jpg, png, bmp or tif file", "Fix the csv file.")
        )
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
    where = f"--data_dir {data_dir!r}"
    images = []
    masks = []
    for file in find_files(data_dir, lambda name: _stem(name) is not None):
        name = _stem(file.name)
        if not name.lower().endswith(SUPERPIXEL_STEM):
            is_mask = MASK_STEM.search(name) or MASK_FOLDER.search(_folder_name(file))
            (masks if is_mask else images).append(file)
    if not images:
        return [Pair(_case_name(file), None, file.path) for file in choose_split(masks, split, where, False)]
    in_folders = [file for file in images if IMAGE_FOLDER.search(_folder_name(file))]
    if not in_folders:
        return [Pair(_case_name(file), file.path, None) for file in choose_split(images, split, where, False)]
    used = set(in_folders)
    for file in images:
        if file not in used:
            leave_out("picture file outside of the folders of images", file.shown)
    folders = {}  # names of folders -> images
    for file in choose_split(in_folders, split, where, False):
        folders.setdefault(file.parts, []).append(file)
    pairs = []
    for files in folders.values():
        paths = _masks_of_folder(files[0], masks)
        pairs += [Pair(_case_name(file), file.path, paths.get(name_key(_case_name(file)))) for file in files]
    return pairs


def _folder_name(file):
    """Return the name of the folder of a file."""
    return file.parts[-1] if file.parts else bf.basename(file.root.rstrip("/"))


def _case_name(file):
    """Return the name of the case of an image or a mask."""
    return MASK_STEM.sub("", _stem(file.name))


def _masks_of_folder(image, masks):
    """Return the masks for the `*_Data` folder of an image: a dict of a case's key (`walk.name_key`) -> path.

    They are in the folder `*_GroundTruth` next to it. masks: all `DataFile`s of masks.
    """
    challenge = _challenge(IMAGE_FOLDER, _folder_name(image))
    if set(image.parts) <= {_folder_name(replace(image, parts=()))}:
        # data_dir is the folder of images itself, so that the masks are not below it
        found = _masks_next_to(image.root, challenge)
    else:
        found = [
            file
            for file in masks
            if len(file.parts) == len(image.parts)
            and file.parts[:-1] == image.parts[:-1]
            and _is_mask_folder(file.parts[-1], challenge)
        ]
    paths = {}
    for file in found:
        paths.setdefault(name_key(_case_name(file)), file.path)
    return paths


def _masks_next_to(data_dir, challenge):
    """Return the `DataFile`s in the folders of masks of a challenge that lie next to a folder."""
    parent = bf.dirname(data_dir.rstrip("/")) or "."
    found = []
    for name in list_names(parent):
        if _is_mask_folder(name, challenge):
            found += [file for file in walk_data(bf.join(parent, name)) if _stem(file.name) is not None]
    return found


def _is_mask_folder(name, challenge):
    return MASK_FOLDER.search(name) is not None and _challenge(MASK_FOLDER, name) == challenge


def _challenge(ending, name):
    """Return the part of a folder's name that its images and its masks share.

    The task is removed too, because 2017 and 2018 name it differently in the two folders.
    """
    return TASK.sub("", ending.sub("", name)).lower()


def _stem(file):
    """Return the file name of a picture without its extension, or None for other files."""
    return PICTURE_SUFFIX.sub("", file) if PICTURE_SUFFIX.search(file) else None


def _signs(files):
    """Return the names of folders *_Data or *_Input and *_GroundTruth, if there are both or the challenge is named.

    The csv file of a challenge counts too.
    """
    names = {_folder_name(file) for file in files if _stem(file.name) is not None}
    images = sorted(name for name in names if IMAGE_FOLDER.search(name))
    masks = sorted(name for name in names if MASK_FOLDER.search(name))
    folders = images + masks
    if not (images and masks):
        folders = [name for name in folders if CHALLENGE.search(name)]
    tables = [file.shown for file in files if TABLE.search(file.name)]
    return folders + tables


LAYOUT = PictureLayout(
    name="ISIC",
    summary="skin lesions of 2016, 2017 and 2018",
    order=10,
    expected=EXPECTED,
    labels=LabelMap(),
    default_labels=(SINGLE,),
    find_pairs=find_pairs,
    signs=_signs,
)

"""ISIC 2016 to 2018: folders of images beside folders of masks, a csv of pairs, or a plain folder."""

import csv
import re

import blobfile as bf

from guided_diffusion_core.data.check.inventory import files_of_pairs
from guided_diffusion_core.data.dataset import require_unique
from guided_diffusion_core.data.formats.images import read_rgb
from guided_diffusion_core.data.formats.labels import SINGLE, LabelMap
from guided_diffusion_core.data.formats.transforms import RGB_RULE
from guided_diffusion_core.data.pairs import Pair, PairDataset, pair_truths
from guided_diffusion_core.errors import found_expected, report
from guided_diffusion_core.system.files import read_bytes, require_folder, walk_files

IMAGE_SUFFIX = re.compile(r"\.(jpg|jpeg|png)$", re.IGNORECASE)
DATA_FOLDER = re.compile(r"_(data|input)$", re.IGNORECASE)  # Input: 2018
TRUTH_FOLDER = re.compile(r"_groundtruth$", re.IGNORECASE)
PART = re.compile(r"_(part1|task1|task1-2)(?=_|$)", re.IGNORECASE)  # the parts that are about segmentation
MASK_STEM = re.compile(r"_segmentation$", re.IGNORECASE)
SPLIT_WORDS = {"Training": "train", "Test": "test"}  # how folder names speak of the splits
CSV_ENCODINGS = ("utf-8-sig", "gbk")
CSV_DELIMITERS = ",;\t|"
CSV_COLUMNS = {"img": "img", "image": "img", "seg": "seg", "mask": "seg"}  # names in a header, and their meaning
LABELS = LabelMap()
DEFAULT_LABELS = (SINGLE,)
LAYOUT = (
    "*_Data/ISIC_0000000.jpg beside *_GroundTruth/ISIC_0000000_Segmentation.png, or a csv "
    "*_GroundTruth.csv with the header ,img,seg (a plain folder of images serves for sampling only)"
)


def find_pairs(data_dir, split):
    """All images of a split with their masks, a list of `Pair` by name; mask None where there is none.

    The first that there is of: a csv `*_{split}_GroundTruth.csv` in `data_dir` with the columns img
    and seg (or image and mask); folders `*_Data` or `*_Input`, masks in the sibling `*_GroundTruth`; images
    in any folders, without masks. Of several `*_Data` folders those count whose name has the split ("train"
    or "test"), or all if none has.
    Raises `UserError` if the folder is missing or holds no image, and for a name used twice.
    """
    data_dir = require_folder(data_dir, "--data_dir", LAYOUT)
    pairs = _pairs_of_csv(data_dir, split)
    if pairs is None:
        pairs = _pairs_of_folders(data_dir, split)
    if not pairs:
        raise found_expected(f"--data_dir {data_dir!r}", "no image (jpg, jpeg or png)", LAYOUT, "Check the path.")
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
                pairs = [_pair_of_row(data_dir, bf.join(data_dir, file), row) for row in rows]
                return [pair for pair in pairs if pair]
    return None


def _read_csv(path):
    """The rows of a csv as dicts, with the keys "img" and "seg" where the header has such columns.

    Its delimiter is the one of `CSV_DELIMITERS` that its header has most of."""
    content = read_bytes(path)
    for encoding in CSV_ENCODINGS:
        try:
            lines = content.decode(encoding).splitlines()
            break
        except UnicodeDecodeError:
            continue
    else:
        raise found_expected(path, "text of an unknown encoding", "utf-8 or gbk", "Save the file as utf-8.")
    delimiter = max(CSV_DELIMITERS, key=lines[0].count) if lines else ","
    return [
        {CSV_COLUMNS.get((name or "").strip().lower(), name): value for name, value in row.items()}
        for row in csv.DictReader(lines, delimiter=delimiter)
    ]


def _pair_of_row(data_dir, table, row):
    """The `Pair` of a row of a csv; reports what is wrong with it, and returns None then."""
    if not row["img"]:
        report(found_expected(table, "a row without an image", "its path in column img", "Mend the row."))
        return None
    image, mask = (bf.join(data_dir, (row[key] or "").replace("\\", "/")) for key in ("img", "seg"))
    name = _stem(bf.basename(image))
    if name is None:
        report(found_expected(table, f"{image}, which is no image", "a jpg, jpeg or png file", "Mend the csv."))
    elif not bf.exists(image):
        report(
            found_expected(
                table,
                f"{image}, which is not there",
                "paths relative to the csv's folder",
                "Mend the csv or add the file.",
            )
        )
    else:
        return Pair(name, image, mask if row["seg"] and bf.exists(mask) else None)
    return None


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
    images = {}
    masks = {}
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
    """Pair the images of a `*_Data` folder with the masks of the sibling of the same beginning; that of 2017 and
    2018 has its part of the challenge named differently in the two."""
    parent = bf.dirname(folder) or "."
    beginning = _beginning(DATA_FOLDER, folder)
    masks = {}
    for sibling in sorted(bf.listdir(parent)):
        if TRUTH_FOLDER.search(sibling) and _beginning(TRUTH_FOLDER, sibling) == beginning:
            truth_folder = bf.join(parent, sibling)
            for file in sorted(bf.listdir(truth_folder)):
                name = _stem(file)
                if name is not None and not file.startswith("."):
                    masks.setdefault(MASK_STEM.sub("", name).lower(), bf.join(truth_folder, file))
    return [Pair(name, path, masks.get(name.lower())) for name, path in images]


def _beginning(ending, folder):
    """What a folder of images and its folder of masks are both called, but for their endings and parts."""
    return PART.sub("", ending.sub("", bf.basename(folder))).lower()


def _stem(file):
    """A picture's file name without its extension; None for other files."""
    return IMAGE_SUFFIX.sub("", file) if IMAGE_SUFFIX.search(file) else None


class IsicDataset(PairDataset):
    """Colour images with one mask each.

    data_dir: folder of the set, see `find_pairs`. split: "Training" or "Test".
    labels:   value of `--labels`. The rest as of `PairDataset`.
    """

    def __init__(self, data_dir, size, split, need_masks=True, upstream_compat=False, labels=""):
        super().__init__(
            find_pairs(data_dir, split),
            LABELS.select(labels, DEFAULT_LABELS),
            size,
            need_masks,
            upstream_compat,
            data_dir,
            LAYOUT,
        )

    def _read(self, pair):
        return read_rgb(pair.image, self.size)


def open_dataset(config, size, split, need_masks):
    """See `data.open_dataset`."""
    return IsicDataset(config.data_dir, size, split, need_masks, config.upstream_compat, config.labels)


def list_files(config, split, need_masks):
    """See `data.list_files`."""
    pairs = find_pairs(config.data_dir, split)
    return RGB_RULE, files_of_pairs(pairs, LABELS.select(config.labels, DEFAULT_LABELS), need_masks)


def list_truths(data_dir, split="Test", labels=""):
    """The ground truth of every case of a split, a list of `Truth`.

    data_dir: folder of the set, or of the masks alone. Raises `UserError` for missing masks.
    """
    return pair_truths(find_pairs(data_dir, split), LABELS.select(labels, DEFAULT_LABELS), data_dir, LAYOUT)


def open_truths(config, split):
    """See `data.list_truths`."""
    return list_truths(config.data_dir, split, config.labels)

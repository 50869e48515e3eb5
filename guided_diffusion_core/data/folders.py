"""Plain folders: `images/` next to `masks/`, or all files in one folder; their splits and their labels.json."""

import json

import blobfile as bf

from guided_diffusion_core.data.formats.labels import SINGLE, LabelMap, split_names
from guided_diffusion_core.data.found import find_files, nothing_found
from guided_diffusion_core.data.names import LABEL_FORM, name_key
from guided_diffusion_core.data.pairs import MASK_ENDING, pair_by_stem
from guided_diffusion_core.data.splits import choose_split, parse_folder
from guided_diffusion_core.data.walk import leave_out
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import read_bytes, require_folder

# Names without separators and without the word of a split: train_images and Ground-Truth count too.
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "gt",
    "groundtruth",
    "annotations",
    "annotation",
    "segmentations",
    "segmentation",
)
LABELS_FILE = "labels.json"
BACKGROUND = "background"  # the name in labels.json for the values that belong to no label
LABELS_FORM = 'an object of label names and stored values such as {"background": 0, "disc": [1, 2], "cup": 2}'


def find_pairs(data_dir, split, stem, expected, gather=list):
    """Return the images and masks of a split in plain folders, a list of `Pair` by name.

    Images are in folders `IMAGE_FOLDERS` and masks in folders `MASK_FOLDERS` next to them, at any depth. Without
    folders of masks, the files whose names end like those of masks (`MASK_ENDING`) are masks and all others are images.
    Folders of splits lie above these folders (train/images), below them (images/train) or are in their names
    (train_images); `splits.choose_split` says which are used.

    stem:     function of a file name that returns it without its extension, or None to ignore the file.
    expected: the expected layout in words, for errors.
    gather:   function of the files of the folder, a list of `DataFile`, that returns those to use; it may join several.
    Raises `UserError` if the folder is missing, holds no such file or no such split, and for the errors of
    `pair_by_stem`.
    """
    data_dir = require_folder(data_dir, "--data_dir", expected)
    files = find_files(data_dir, lambda name: stem(name) is not None, gather)
    if not files:
        raise nothing_found(data_dir, expected)
    where = f"--data_dir {data_dir!r}"
    chosen = choose_split(_in_folders(files), split, where, is_required=True)
    masks = _masks(chosen, data_dir, stem)
    named = {file: (stem(file.name), file.path) for file in chosen}
    images = [pair for file, pair in named.items() if file not in masks]
    return pair_by_stem(images, [named[file] for file in masks], where)


def _kind(file):
    """Return "image" or "mask" for a file below a folder of images or masks, the lowest one; None for other files."""
    for name in reversed(file.parts):
        kind = folder_kind(name)
        if kind:
            return kind
    return None


def folder_kind(name):
    """Return "image" or "mask" for the name of such a folder, None for any other name."""
    _, rest = parse_folder(name)
    if rest in IMAGE_FOLDERS:
        return "image"
    return "mask" if rest in MASK_FOLDERS else None


def _in_folders(files):
    """Return the files below folders of images and masks; all files if there are no such folders."""
    inside = [file for file in files if _kind(file)]
    if not inside:
        return files
    for file in files:
        if not _kind(file):
            leave_out("file outside of the folders of images and masks", file.shown)
    return inside


def _masks(files, data_dir, stem):
    """Return those of the files that are masks, as a dict with them as keys."""
    masks = [file for file in files if _kind(file) == "mask"]
    # data_dir may be such a folder itself
    if not masks and folder_kind(bf.basename(data_dir.rstrip("/"))) == "mask":
        masks = [file for file in files if _kind(file) is None]
    if not masks:
        names = {name_key(stem(file.name)) for file in files}
        masks = [file for file in files if _is_named_mask(file, names, stem)]
    return dict.fromkeys(masks)


def _is_named_mask(file, names, stem):
    """Return whether the name of a file makes it a mask; in a folder of images, only next to its image.

    names: the keys of all names (`walk.name_key`).
    """
    name = stem(file.name)
    image = MASK_ENDING.sub("", name)
    return image != name and (_kind(file) is None or name_key(image) in names)


def folder_labels(data_dir, spec, need_values, plain=False):
    """Return the chosen `LabelMap` of a plain folder: from its labels.json, or one binary mask without that file.

    spec:        value of `--labels`; empty for all labels of labels.json in its order, or for the one mask.
    need_values: False for sampling without labels, where only the names matter. Without a labels.json any names
                 are accepted then.
    plain:       see `LabelMap`.
    Raises `UserError` for a malformed labels.json, and for a name that it does not have.
    """
    path = bf.join(str(data_dir), LABELS_FILE)
    if bf.exists(path):
        known = _read_labels_file(path)
        return known.select(spec, known.names)
    names = split_names(spec) or (SINGLE,)
    if names != (SINGLE,) and need_values:
        raise found_expected(
            "--labels", repr(spec), f"the values of these labels in {path}: {LABELS_FORM}", "Write that file."
        )
    return LabelMap(names, (None,) * len(names), plain=plain)


def _read_labels_file(path):
    """Return the `LabelMap` of a labels.json file. Raises `UserError` for a malformed one."""
    try:
        tree = json.loads(read_bytes(path))
        values = {}
        for name, value in tree.items():
            name = name_key(name)
            if name in values:
                raise ValueError(f"the label {name} twice")
            values[name] = frozenset(value if isinstance(value, list) else [value])
            if not values[name] or not all(type(number) is int for number in values[name]):
                raise ValueError("values that are not whole numbers")
        background = values.pop(BACKGROUND, frozenset({0}))
        return LabelMap(tuple(values), tuple(values.values()), background)
    except (ValueError, TypeError, AttributeError) as error:
        raise found_expected(
            path,
            f"something else ({error})",
            f"{LABELS_FORM}, with names made of {LABEL_FORM}",
            "Correct the file.",
        ) from error

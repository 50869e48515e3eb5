"""Plain folders: `images/` next to `masks/`, or all files in one folder; their splits and their labels.json."""

import json

import blobfile as bf

from guided_diffusion_core.data.formats.labels import SINGLE, LabelMap, split_names
from guided_diffusion_core.data.pairs import MASK_ENDING, pair_by_stem
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import read_bytes, require_folder, walk_files

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "gt", "groundtruth")
SPLIT_WORDS = {"Training": "train", "Test": "test"}  # what the folder names of a split contain
ALL_SPLIT_WORDS = ("train", "test", "val")
LABELS_FILE = "labels.json"
BACKGROUND = "background"  # the name in labels.json for the values that belong to no label
LABELS_FORM = 'an object of label names and stored values such as {"background": 0, "disc": [1, 2], "cup": 2}'


def find_pairs(data_dir, split, stem, expected):
    """Return the images and masks of a split in plain folders, a list of `Pair` by name.

    Images are in folders images (image, imgs, img) and masks in folders masks (mask, labels, label, gt,
    groundtruth) next to them, at any depth. Without such folders, the files whose names end like those of masks
    (`MASK_ENDING`) are masks and all others are images. The folders that hold these are used if their paths contain
    the word of the split ("train" or "test"); if no path does, those that contain the word of no split are used.

    stem:     function of a file name that returns it without its extension, or None to ignore the file.
    expected: the expected layout in words, for errors.
    Raises `UserError` if the folder is missing, holds no such file or no such split, and for the errors of
    `pair_by_stem`.
    """
    data_dir = require_folder(data_dir, "--data_dir", expected)
    images = {}  # (has folders of images or masks, parent's path below data_dir) -> list of (name, path)
    masks = {}
    for folder, file in walk_files(data_dir):
        name = stem(file)
        if name is None:
            continue
        parent, is_mask = _parent_and_kind(data_dir, folder, name)
        files = masks if is_mask else images
        files.setdefault(parent, []).append((name, bf.join(folder, file)))
    parents = images.keys() | masks.keys()
    if not parents:
        raise found_expected(f"--data_dir {data_dir!r}", "no file of this layout", expected, "Check the path.")
    # files outside folders of images or masks count only if there are no such folders
    with_folders = {parent for parent in parents if parent[0]}
    chosen = _parents_of_split(with_folders or parents, split, data_dir)
    chosen_images = [item for parent in chosen for item in images.get(parent, ())]
    chosen_masks = [item for parent in chosen for item in masks.get(parent, ())]
    return pair_by_stem(chosen_images, chosen_masks, f"--data_dir {data_dir!r}")


def _parent_and_kind(data_dir, folder, name):
    """Return where a file belongs and whether it is a mask: ((has_folders, parent), is_mask).

    has_folders: True if the file is under a folder of images or masks.
    parent:      path below `data_dir`, as a tuple, of what holds that folder; without one, of the file's folder.
    """
    parts = [part for part in folder[len(data_dir) :].replace("\\", "/").split("/") if part]
    for depth in reversed(range(len(parts))):
        part = parts[depth].lower()
        if part in IMAGE_FOLDERS + MASK_FOLDERS:
            return (True, tuple(parts[:depth])), part in MASK_FOLDERS
    is_mask_folder = bf.basename(data_dir.rstrip("/")).lower() in MASK_FOLDERS  # data_dir may be such a folder itself
    is_mask = is_mask_folder or MASK_ENDING.search(name) is not None
    return (False, tuple(parts)), is_mask


def _parents_of_split(parents, split, data_dir):
    """Return the parents that belong to a split, sorted. Raises `UserError` if only other splits are there."""

    def has_word(parent, words):
        _, path = parent
        return any(word in part.lower() for part in path for word in words)

    chosen = [parent for parent in parents if has_word(parent, [SPLIT_WORDS[split]])]
    if not chosen:
        chosen = [parent for parent in parents if not has_word(parent, ALL_SPLIT_WORDS)]
    if not chosen:
        found = sorted({"/".join(path) for _, path in parents})
        raise found_expected(
            f"--data_dir {data_dir!r}",
            f"only {', '.join(found)}",
            f"a folder with {SPLIT_WORDS[split]!r} in its name",
            "Name the folder of the split.",
        )
    return sorted(chosen)


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
            values[name] = frozenset(value if isinstance(value, list) else [value])
            if not values[name] or not all(type(number) is int for number in values[name]):
                raise ValueError("values that are not whole numbers")
        background = values.pop(BACKGROUND, frozenset({0}))
        return LabelMap(tuple(values), tuple(values.values()), background)
    except (ValueError, TypeError, AttributeError) as error:
        raise found_expected(
            path,
            f"something else ({error})",
            f"{LABELS_FORM}, with names made of a to z, 0 to 9 and _",
            "Correct the file.",
        ) from error

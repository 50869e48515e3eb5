"""Plain folders: files in `images/` beside files in `masks/`, or all in one folder, and their splits."""

import json

import blobfile as bf

from guided_diffusion_core.data.formats.labels import SINGLE, LabelMap, split_names
from guided_diffusion_core.data.pairs import MASK_ENDING, pair_by_stem
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import read_bytes, require_folder, walk_files

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "gt", "groundtruth")
SPLIT_WORDS = {"Training": "train", "Test": "test"}
OTHER_SPLITS = ("train", "test", "val")
LABELS_FILE = "labels.json"
BACKGROUND = "background"  # the name of what belongs to no label
LABELS_FORM = 'an object of label names and stored values such as {"background": 0, "disc": [1, 2], "cup": 2}'


def find_pairs(data_dir, split, stem, layout):
    """The images and masks of a split in plain folders, a list of `Pair` by name.

    Images lie in folders images (image, imgs, img), masks in folders masks (mask, labels, label, gt,
    groundtruth) beside, at any depth; without such folders, files whose names end like masks' (`MASK_ENDING`) are
    masks and all others images. Of several places those count whose path has the split's word ("train",
    "test"), else those without the word of any split.
    stem:   function of a file's name that gives it without its extension, None for files to pass over.
    layout: the expected layout in words, for errors.
    Raises `UserError` if the folder is missing or holds no such file or no such split, and as `pair_by_stem`.
    """
    data_dir = require_folder(data_dir, "--data_dir", layout)
    places = {}
    for folder, file in walk_files(data_dir):
        name = stem(file)
        if name is not None:
            place, is_mask = _place(data_dir, folder, name)
            places.setdefault(place, ([], []))[is_mask].append((name, bf.join(folder, file)))
    if not places:
        raise found_expected(f"--data_dir {data_dir!r}", "no file of this layout", layout, "Check the path.")
    ordered = {place for place in places if place[0]} or set(places)
    chosen = _of_split(ordered, split, data_dir)
    images, masks = ([item for place in sorted(chosen) for item in places[place][kind]] for kind in (0, 1))
    return pair_by_stem(images, masks, f"--data_dir {data_dir!r}")


def _place(data_dir, folder, name):
    """((whether in a folder of images or masks, the path of what holds it below data_dir), whether a mask)."""
    parts = [part for part in folder[len(data_dir) :].replace("\\", "/").split("/") if part]
    for depth in range(len(parts) - 1, -1, -1):
        if parts[depth].lower() in IMAGE_FOLDERS + MASK_FOLDERS:
            return (True, tuple(parts[:depth])), parts[depth].lower() in MASK_FOLDERS
    given_masks = bf.basename(data_dir.rstrip("/")).lower() in MASK_FOLDERS
    return (False, tuple(parts)), bool(given_masks or MASK_ENDING.search(name))


def _of_split(places, split, data_dir):
    def has(place, *words):
        return any(word in part.lower() for part in place[1] for word in words)

    chosen = [place for place in places if has(place, SPLIT_WORDS[split])]
    chosen = chosen or [place for place in places if not has(place, *OTHER_SPLITS)]
    if not chosen:
        found = sorted({"/".join(place[1]) for place in places})
        raise found_expected(
            f"--data_dir {data_dir!r}",
            f"only {', '.join(found)}",
            f"a folder with {SPLIT_WORDS[split]!r} in its name",
            "Give the folder that is meant.",
        )
    return chosen


def folder_labels(data_dir, spec, need_values, plain=False):
    """The chosen `LabelMap` of a plain folder: of its labels.json, else of one binary mask.

    spec:        value of `--labels`; empty for all of labels.json in its order, or the one mask.
    need_values: False for label-free sampling, where the names alone count: without a labels.json any do.
    Raises `UserError` for a labels.json that is not one, and for a name that it does not have.
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
    try:
        tree = json.loads(read_bytes(path))
        values = {name: frozenset(value if isinstance(value, list) else [value]) for name, value in tree.items()}
        whole = all(type(value) is int for found in values.values() for value in found)
        if not whole or not all(values.values()):
            raise ValueError("values that are no whole numbers")
        background = values.pop(BACKGROUND, frozenset({0}))
        return LabelMap(tuple(values), tuple(values.values()), background)
    except (ValueError, TypeError, AttributeError) as error:
        raise found_expected(
            path, f"something else ({error})", f"{LABELS_FORM}, names of a to z, 0 to 9 and _", "Correct the file."
        ) from error

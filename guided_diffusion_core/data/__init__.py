"""Datasets: every layout becomes a `dataset.Dataset` of numpy arrays. docs/data.md describes the layouts."""

import re
from contextlib import contextmanager

import blobfile as bf

from guided_diffusion_core.data.dataset import Case, Dataset, Example, Truth
from guided_diffusion_core.data.found import NothingFound
from guided_diffusion_core.data.guess import find_layouts
from guided_diffusion_core.data.layouts import LAYOUTS, brats_slices
from guided_diffusion_core.data.walk import walk_data
from guided_diffusion_core.errors import UserError, found_expected

__all__ = [
    "LAYOUTS",
    "Case",
    "Dataset",
    "Example",
    "Truth",
    "known_layout",
    "layout_name",
    "list_files",
    "list_truths",
    "open_dataset",
]


def open_dataset(data_config, image_size, split, need_masks):
    """Open the dataset that a configuration describes.

    data_config: `DataConfig`.
    image_size:  side of the network input in pixels.
    split:       "Training" or "Test". It chooses among the folders of a layout with splits; layouts without splits,
                 such as BraTS and REFUGE2, use all files under `data_dir`.
    need_masks:  True for training. False for sampling: the examples then have no mask.
    Raises `UserError` for everything that is wrong with the data.
    """
    with _layout_of(data_config) as layout:
        return layout.open_dataset(data_config, image_size, split, need_masks)


def list_truths(data_config, split="Test"):
    """Return the ground truth of every case, a list of `Truth`, for evaluation.

    Arguments and errors are those of `open_dataset`, except that images may be missing.
    """
    with _layout_of(data_config) as layout:
        return layout.list_truths(data_config, split)


def list_files(data_config, split, need_masks):
    """Return every file of a data set, for `inventory.take_inventory`.

    split, need_masks: as in `open_dataset`.
    Returns (normalisation, list of `ListedFile`). Problems with single files go to `errors.report`.
    Raises `UserError` if there is nothing to list.
    """
    with _layout_of(data_config) as layout:
        return layout.list_files(data_config, split, need_masks)


def known_layout(data_name):
    """Return the name in `LAYOUTS` that a `--data_name` stands for, or None.

    Case, separators and the year of a challenge are ignored.
    """
    short = re.sub(r"[^A-Z0-9]", "", data_name.upper())
    names = {name.replace("_", ""): name for name in LAYOUTS}
    without_year = re.sub(r"20\d\d$", "", short)
    return names.get(short) or names.get(without_year) or names.get(f"{short}2")  # REFUGE stands for REFUGE2


def layout_name(data_name, data_dir):
    """Return the name in `LAYOUTS` of the layout that reads a folder.

    Like the original, this accepts a folder of slices for BRATS, and takes a name that no layout has for a plain
    folder: of volumes if it holds any, otherwise of pictures.
    """
    name = known_layout(data_name)
    exists = bool(data_dir) and bf.isdir(str(data_dir))
    if name == "BRATS" and exists and brats_slices.holds_slices(data_dir):
        return "BRATS_SLICES"
    if name is None:
        return "VOLUMES" if exists and LAYOUTS["VOLUMES"].signs(walk_data(data_dir)) else "IMAGES"
    return name


@contextmanager
def _layout_of(config):
    """Yield the `Layout` of a configuration.

    An error says which other layout the folder shows, and how an unknown `--data_name` was read.
    """
    name = layout_name(config.data_name, config.data_dir)
    try:
        yield LAYOUTS[name]
    except UserError as error:
        if isinstance(error, NothingFound):
            error = _with_another_layout(error, config.data_dir, name)
        if known_layout(config.data_name):
            raise error
        raise UserError(
            f"{error}\n--data_name {config.data_name!r} is none of {', '.join(LAYOUTS)}, so the "
            f"folder was taken for a plain one ({name})."
        ) from error


def _with_another_layout(error, data_dir, name):
    """Return the error about a folder without files of a layout, with the layout that the folder shows, if any."""
    others = [other for other in find_layouts(data_dir) if other != name]
    if not others:
        return error
    where, found, expected, _ = error.parts
    return found_expected(where, found, expected, f"The folder looks like --data_name {' or '.join(others)}.")

"""Datasets: one module per layout, one numpy protocol (`dataset.Dataset`). docs/data.md describes each layout."""

import re

import blobfile as bf

from guided_diffusion_core.data.dataset import Case, Dataset, Example, Truth
from guided_diffusion_core.data.formats.slices import require_all_slices
from guided_diffusion_core.data.formats.volumes import stem
from guided_diffusion_core.data.layouts import (
    brats,
    brats_slices,
    ddti,
    isic,
    nnunet,
    plain_images,
    plain_volumes,
    refuge2,
)
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system.files import walk_files

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

# Value of --data_name -> module with `open_dataset(config, size, split, need_masks)`,
# `open_truths(config, split)` and `list_files(config, split, need_masks)`.
LAYOUTS = {
    "ISIC": isic,
    "BRATS": brats,
    "BRATS_SLICES": brats_slices,
    "REFUGE2": refuge2,
    "DDTI": ddti,
    "IMAGES": plain_images,
    "VOLUMES": plain_volumes,
    "NNUNET": nnunet,
}
PICTURE_LAYOUTS = ("ISIC", "REFUGE2", "DDTI", "IMAGES")


def open_dataset(data_config, image_size, split, need_masks):
    """The dataset of a configuration.

    data_config: `DataConfig`.
    image_size:  side of the network input in pixels.
    split:       "Training" or "Test"; chooses among folders where the layout has splits, while of BraTS and
                 REFUGE2 all that lies under `data_dir` is used.
    need_masks:  True for training; False for sampling, where examples then have no mask.
    Raises `UserError` for whatever is wrong with the data.
    """
    return _with_layout(data_config, lambda layout: layout.open_dataset(data_config, image_size, split, need_masks))


def list_truths(data_config, split="Test"):
    """The ground truth of every case of a configuration's data, a list of `Truth`, for evaluation.

    Arguments and errors as in `open_dataset`; images may lack.
    """
    return _with_layout(data_config, lambda layout: layout.open_truths(data_config, split))


def list_files(data_config, split, need_masks):
    """Every file of a configuration's data, for `inventory.take_inventory`.

    split, need_masks: as in `open_dataset`.
    Returns (normalisation, list of `ListedFile`); what is wrong with single files is reported (`errors.report`).
    Raises `UserError` where there is nothing to list.
    """
    return _with_layout(data_config, lambda layout: layout.list_files(data_config, split, need_masks))


def known_layout(data_name):
    """The name in `LAYOUTS` that a `--data_name` means, or None: case, separators and the year of a challenge do
    not count."""
    short = re.sub(r"[^A-Z0-9]", "", data_name.upper())
    names = {name.replace("_", ""): name for name in LAYOUTS}
    return names.get(short) or names.get(re.sub(r"20\d\d$", "", short)) or names.get(f"{short}2")


def layout_name(data_name, data_dir):
    """The name in `LAYOUTS` by which a folder is read.

    As in the original, BRATS may be a folder of slices, and a name of no layout means a plain folder: of
    volumes where it holds NIfTI files, else of pictures.
    """
    name = known_layout(data_name)
    there = bool(data_dir) and bf.isdir(str(data_dir))
    if name == "BRATS" and there and brats_slices.holds_slices(data_dir):
        return "BRATS_SLICES"
    if name is None:
        has_volumes = there and any(stem(file) for _, file in walk_files(str(data_dir)))
        return "VOLUMES" if has_volumes else "IMAGES"
    return name


def _with_layout(config, use):
    """What `use` makes of a configuration's layout; an error under a name that is none says so."""
    name = layout_name(config.data_name, config.data_dir)
    if name in PICTURE_LAYOUTS:
        require_all_slices(config.slices)
    try:
        return use(LAYOUTS[name])
    except UserError as error:
        if known_layout(config.data_name):
            raise
        raise UserError(
            f"{error}\n--data_name {config.data_name!r} is none of {', '.join(LAYOUTS)}, so the "
            f"folder was taken for a plain one ({name})."
        ) from error

"""Datasets: one module per layout, one numpy protocol (`dataset.Dataset`)."""
from guided_diffusion_core.data import brats, isic
from guided_diffusion_core.data.dataset import Case, Dataset, Example, Truth
from guided_diffusion_core.errors import found_expected

__all__ = ["Case", "Dataset", "Example", "Truth", "list_files", "list_truths", "open_dataset"]


def open_dataset(data_config, image_size, split, need_masks):
    """The dataset of a configuration.

    data_config: `DataConfig`.
    image_size:  side of the network input in pixels.
    split:       "Training" or "Test"; chooses among ISIC folders, while of BraTS all that lies
                 under `data_dir` is used.
    need_masks:  True for training; False for sampling, where examples then have no mask.
    Raises `UserError` for whatever is wrong with the data.
    """
    if data_config.data_name == "BRATS":
        return brats.BratsDataset(data_config.data_dir, image_size, data_config.slices, need_masks,
                                  data_config.upstream_compat, labels=data_config.labels)
    _require_all_slices(data_config)
    return isic.IsicDataset(data_config.data_dir, image_size, split, need_masks, data_config.upstream_compat,
                            data_config.labels)


def list_truths(data_config, split="Test"):
    """The ground truth of every case of a configuration's data, a list of `Truth`, for evaluation.

    Arguments and errors as in `open_dataset`; images may lack.
    """
    if data_config.data_name == "BRATS":
        return brats.list_truths(data_config.data_dir, data_config.slices, data_config.labels)
    _require_all_slices(data_config)
    return isic.list_truths(data_config.data_dir, split, data_config.labels)


def list_files(data_config, split, need_masks):
    """Every file of a configuration's data, for `inventory.take_inventory`.

    split, need_masks: as in `open_dataset`.
    Returns (normalisation, list of `ListedFile`); what is wrong with single files is reported (`errors.report`).
    Raises `UserError` where there is nothing to list.
    """
    layout = {"BRATS": brats, "ISIC": isic}[data_config.data_name]
    return layout.list_files(data_config, split, need_masks)


def _require_all_slices(data_config):
    if data_config.slices != "all":
        raise found_expected("--slices", f"{data_config.slices!r} for 2D images", "all", "Leave it out.")

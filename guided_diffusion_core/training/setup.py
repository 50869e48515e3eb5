"""Preparation of a training: fit the configuration to the data."""

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks.registry import smallest_batch


def fit_to_data(config, dataset, in_ch_given, mask_channels_given=False):
    """Return the configuration with the dataset's channels and normalisation, checked for training.

    in_ch_given:         `--in_ch` is on the command line, and must fit the data.
    mask_channels_given: the same for `--mask_channels`.
    Raises `UserError` for a network or a batch that cannot be trained.
    """
    masks = len(dataset.labels)
    channels = dataset.in_channels + masks
    if mask_channels_given and config.model.mask_channels != masks:
        raise found_expected(
            "--mask_channels",
            config.model.mask_channels,
            f"{masks} for this data, whose labels are {', '.join(dataset.labels)}",
            "Leave the flag out.",
        )
    if in_ch_given and config.model.in_ch != channels:
        raise found_expected(
            "--in_ch",
            config.model.in_ch,
            f"{channels} for this data, its {dataset.in_channels} image channels and {masks} of the mask",
            "Leave the flag out.",
        )
    # The names of several masks are stored, because data for sampling need not have them.
    labels = ",".join(dataset.labels) if masks > 1 else config.data.labels
    # the orientation that the data have decided, which sampling has to follow; pictures have none
    orientation = getattr(dataset, "orientation", config.data.orientation)
    config = config.replace(
        in_ch=channels,
        mask_channels=masks,
        labels=labels,
        orientation=orientation,
        normalisation=dataset.normalisation,
    )
    microbatch = config.training.microbatch if config.training.microbatch > 0 else config.training.batch_size
    # The last microbatch of a batch may be smaller. Batch norm takes its statistics over all processes.
    last = config.training.batch_size % microbatch or microbatch
    if last * config.processes < smallest_batch(config.model):
        raise found_expected(
            "--batch_size",
            f"a forward pass of one example at {config.model.image_size} pixels",
            "two or more, because batch norm sees one value per channel there",
            "Give a larger --batch_size or --microbatch.",
        )
    return config

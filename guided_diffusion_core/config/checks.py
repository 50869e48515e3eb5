"""Which values and combinations of settings are refused."""

import dataclasses

from guided_diffusion_core.config.sections import AUGMENT_SHARES, SECTIONS
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks.registry import families


def check(config):
    """Refuse values outside their range; the network's own rules are in the plan of its family."""
    # by type: a wrong --version makes a family of none
    family = next(family for family in families().values() if family.settings is type(config.model))
    flags = {field: flag for flag, field in family.flags().items()}
    for section in SECTIONS:
        _check_fields(getattr(config, section), flags if section == "model" else {})
    training = config.training
    sampling = config.sampling
    for flag, value, low in (
        ("diffusion_steps", config.diffusion.diffusion_steps, 1),
        ("batch_size", training.batch_size, 1),
        ("max_steps", training.max_steps, 1),
        ("log_interval", training.log_interval, 1),
        ("save_interval", training.save_interval, 1),
        ("val_interval", training.val_interval, 1),
        ("val_cases", training.val_cases, 0),
        ("val_steps", training.val_steps, 0),
        ("keep_checkpoints", training.keep_checkpoints, 0),
        ("num_workers", training.num_workers, 0),
        ("lr_anneal_steps", training.lr_anneal_steps, 0),
        ("lr_cycles", training.lr_cycles, 1),
        ("num_ensemble", sampling.num_ensemble, 1),
        ("sample_steps", sampling.sample_steps, 0),
        ("lr", training.lr, 0),
        ("eta", sampling.eta, 0),
        ("weight_decay", training.weight_decay, 0),
        ("augment_brightness", training.augment_brightness, 0),
    ):
        if value < low:
            raise found_expected(f"--{flag}", value, f"a number of at least {low}", "Give a larger one.")
    for flag, value in (*((name, getattr(training, name)) for name in AUGMENT_SHARES),):
        if not 0 <= value < 1:
            raise found_expected(f"--{flag}", value, "a rate from 0 to below 1", "Give such a rate.")
    if not 0 <= training.augment_rotation <= 180:
        raise found_expected(
            "--augment_rotation", training.augment_rotation, "degrees from 0 to 180", "Give such a one."
        )
    if not 0 < sampling.threshold < 1:
        raise found_expected("--threshold", sampling.threshold, "a probability between 0 and 1", "Give such a one.")
    if training.lr_schedule.startswith("cosine") and not training.lr_anneal_steps:
        raise found_expected(
            "--lr_anneal_steps",
            f"0 with --lr_schedule {training.lr_schedule}",
            "the steps over which the rate falls",
            "Give for example that of --max_steps.",
        )
    if training.lr_schedule == "constant" and training.lr_anneal_steps:
        raise found_expected(
            "--lr_anneal_steps",
            f"{training.lr_anneal_steps} with --lr_schedule constant",
            "0",
            "Leave it out, and end the training by --max_steps.",
        )
    if sampling.dynamic_thresholding and sampling.sampler != "dpm-solver++":
        raise found_expected(
            "--dynamic_thresholding",
            f"True with --sampler {sampling.sampler}",
            "--sampler dpm-solver++, which it is for",
            "Add it, or leave --dynamic_thresholding out.",
        )
    ema_rates(training)


def _check_fields(settings, flags):
    """Refuse values of a section that are not among the choices, or outside the range, of their field.

    flags: name of a field -> name of its flag, where they differ.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        flag = f"--{flags.get(field.name, field.name)}"
        choices = field.metadata["choices"]
        if choices and value not in choices:
            raise found_expected(flag, repr(value), " or ".join(choices), "Choose one of them.")
        low = field.metadata["low"]
        below = field.metadata["below"]
        if below is not None and not low <= value < below:
            raise found_expected(flag, value, f"a rate from {low} to below {below}", "Give such a rate.")
        if low is not None and value < low:
            raise found_expected(flag, value, f"a number of at least {low}", "Give a larger one.")


def ema_rates(training):
    """The rates of `TrainingConfig.ema_rate` as floats, e.g. (0.9999,)."""
    try:
        rates = tuple(float(rate) for rate in training.ema_rate.split(","))
    except ValueError:
        rates = (-1.0,)
    if not all(0 <= rate < 1 for rate in rates):
        raise found_expected(
            "--ema_rate",
            repr(training.ema_rate),
            "rates from 0 to below 1 separated by commas",
            "Write for example 0.9999.",
        )
    return rates

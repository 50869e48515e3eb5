"""Refuse values of settings that are outside their range, and settings that do not go together."""

import dataclasses

from guided_diffusion_core.config.sections import ORIENTATION_WORDS, SECTIONS
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks.registry import families
from guided_diffusion_core.system import devices

MOST_RATES = 16


def check(config):
    """Refuse a `Config` with a value out of range or settings that contradict each other; `UserError`.

    The rules of a network beyond the ranges of its settings are in the plan of its family.
    """
    # The family is found by its type of settings: with a wrong --version, no family accepts the settings.
    family = next(family for family in families().values() if family.settings is type(config.model))
    flags = {field: flag for flag, field in family.flags().items()}
    for section in SECTIONS:
        _check_fields(getattr(config, section), flags if section == "model" else {})
    _check_orientation(config.data)
    _check_rate_schedule(config.training)
    _check_thresholding(config.sampling)
    ema_rates(config.training)
    _check_validation(config.training)
    devices.parse(config.compute.device)
    if config.compute.compile and getattr(config.model, "use_checkpoint", False):
        raise found_expected(
            "--compile",
            "True with --use_checkpoint True",
            "one of the two, as a compiled network chooses by itself what it computes again",
            "Leave one of them out.",
        )


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
        allowed = field.metadata["range"]
        if str(allowed) and not allowed.contains(value):
            words = str(allowed)
            of = "of " if words.startswith(("at least", "at most")) else ""
            raise found_expected(flag, value, f"a number {of}{words}", "Give such a number.")


def _check_orientation(data):
    """Refuse an orientation that is neither a word nor one letter of each pair, as nibabel writes them."""
    is_code = sorted(data.orientation.translate(str.maketrans("LPI", "RAS"))) == sorted("RAS")
    if data.orientation not in ORIENTATION_WORDS and not is_code:
        raise found_expected(
            "--orientation",
            repr(data.orientation),
            f"{' or '.join(ORIENTATION_WORDS)}, or three letters, one each of R or L, A or P, S or I",
            "Write for example RAS.",
        )


def _check_rate_schedule(training):
    """Refuse a learning rate that has to fall and has no steps for it, or the other way round."""
    schedule = training.lr_schedule
    if schedule.startswith("cosine") and not training.lr_anneal_steps:
        raise found_expected(
            "--lr_anneal_steps",
            f"0 with --lr_schedule {schedule}",
            "the steps over which the rate falls",
            "Give for example the number of --max_steps.",
        )
    if schedule == "constant" and training.lr_anneal_steps:
        raise found_expected(
            "--lr_anneal_steps",
            f"{training.lr_anneal_steps} with --lr_schedule constant",
            "0",
            "Leave it out, and end the training by --max_steps.",
        )


def _check_validation(training):
    """Refuse more than one source of the cases for validation."""
    given = [
        flag
        for flag, is_given in (
            (f"--val_dir {training.val_dir}", training.val_dir),
            (f"--val_share {training.val_share:g}", training.val_share > 0),
            (f"--fold {training.fold}", training.fold >= 0),
        )
        if is_given
    ]
    if len(given) > 1:
        raise found_expected("the validation set", " and ".join(given), "one of them", "Leave the others out.")


def _check_thresholding(sampling):
    """Refuse dynamic thresholding with a sampler other than DPM-Solver++."""
    if sampling.dynamic_thresholding and sampling.sampler != "dpm-solver++":
        raise found_expected(
            "--dynamic_thresholding",
            f"True with --sampler {sampling.sampler}",
            "--sampler dpm-solver++, which it is for",
            "Add it, or leave --dynamic_thresholding out.",
        )


def ema_rates(training):
    """Return the rates of `TrainingConfig.ema_rate` as a tuple of floats, e.g. (0.9999,).

    Raises `UserError` for a text that is not a list of rates from 0 to below 1.
    """
    try:
        rates = tuple(float(rate) for rate in training.ema_rate.split(","))
    except ValueError:
        rates = (-1.0,)  # refused below
    if len(rates) > MOST_RATES:
        raise found_expected(
            "--ema_rate",
            f"{len(rates)} rates",
            f"at most {MOST_RATES}, each of which is a whole network",
            "Give fewer.",
        )
    if not all(0 <= rate < 1 for rate in rates):
        raise found_expected(
            "--ema_rate",
            repr(training.ema_rate),
            "rates from 0 to below 1 separated by commas",
            "Write for example 0.9999.",
        )
    return rates

"""The flags of all scoring commands. This module imports no scoring, so that `--help` is quick."""

import argparse
import importlib.util
import math

from guided_diffusion_core import command_line
from guided_diffusion_core.config import DataConfig, SamplingConfig
from guided_diffusion_core.errors import found_expected

# Distribution -> module, which `evaluation.surfaces` imports.
SURFACE_PACKAGES = {"MedPy": "medpy", "surface-distance": "surface_distance"}


def add_flags(parser):
    """Add the flags of the ground truth, the threshold and the surface distances.

    Those of the ground truth also have their names in the original and in the Jittor port.
    """
    parser.add_argument(
        "--out_pth",
        "--gt_pred",
        "--data_dir",
        dest="data_dir",
        default="",
        metavar="FOLDER",
        help="folder of the data with its ground truth",
    )
    command_line.add_settings(parser, DataConfig, "data_name", "slices", "labels", "mask_threshold")
    command_line.add_settings(parser, SamplingConfig, "threshold")
    parser.add_argument(
        "--surfaces",
        type=command_line.boolean,
        default=False,
        metavar="True|False",
        help="HD95 and normalised surface distance as well, which take longer (default: False)",
    )
    parser.add_argument(
        "--nsd_tolerance",
        type=float,
        default=1.0,
        metavar="NUMBER",
        help="tolerance of the normalised surface distance: mm for volumes, else the unit of "
        "--pixel_spacing (default: 1)",
    )
    parser.add_argument(
        "--pixel_spacing",
        type=float,
        default=1.0,
        metavar="NUMBER",
        help="side of a pixel of 2D images; volumes have the spacing of their header (default: 1)",
    )
    parser.add_argument(
        "--pictures",
        type=_at_least_zero,
        default=12,
        metavar="INT",
        help="cases shown as pictures in the HTML report (default: 12)",
    )


def data_config(args):
    """Return the `DataConfig` of the flags; without `--data_name`, the layout is that which the folder shows."""
    # imported here, since the layouts import the readers of all file formats
    from guided_diffusion_core.data.guess import data_name_of

    given = command_line.given_settings(args)
    settings = {**given, "data_name": data_name_of(given)}
    return DataConfig(**{name: value for name, value in settings.items() if name != "threshold"})


def threshold(args):
    """Return the threshold of the flags, or the default. Raises `UserError` for values outside (0, 1]."""
    value = command_line.given_settings(args).get("threshold", SamplingConfig.threshold)
    if not 0 < value <= 1:
        raise found_expected("--threshold", value, "a number above 0 and up to 1", "Use 0.5.")
    return value


def surfaces(args):
    """Return the `Surfaces` of the flags, or None without `--surfaces True`.

    Raises `UserError` for lengths that are not positive.
    """
    from guided_diffusion_core.evaluation import Surfaces

    for name in ("nsd_tolerance", "pixel_spacing"):
        if not 0 < getattr(args, name) < math.inf:
            raise found_expected(f"--{name}", getattr(args, name), "a positive number", "Leave it out for 1.")
    if not args.surfaces:
        return None
    missing = [name for name, module in SURFACE_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise found_expected(
            "--surfaces",
            f"no {' and no '.join(missing)}",
            "the packages that measure distances between surfaces",
            f"Run: pip install {' '.join(missing)}",
        )
    return Surfaces(args.nsd_tolerance, args.pixel_spacing)


def require_not_given(args, other_flag):
    """Refuse the flags that have no meaning together with another one, such as "--labels"; `UserError`."""
    if "threshold" in command_line.given_settings(args) or args.surfaces:
        raise found_expected(
            "--threshold or --surfaces", f"given together with {other_flag}", "neither of them", "Leave them out."
        )


def _at_least_zero(text):
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return value

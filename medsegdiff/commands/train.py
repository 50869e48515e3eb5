"""Train MedSegDiff on a folder of images and masks."""

from guided_diffusion_core import command_line
from guided_diffusion_core.system import processes
from medsegdiff import training


def add_flags(parser):
    """Add the flags."""
    parser.description = __doc__
    command_line.add_run_flags(parser, "data", "model", "diffusion", "training", "compute")
    parser.add_argument(
        "--out_dir",
        default=None,
        metavar="FOLDER",
        help="folder for the log, the configuration and the checkpoints; it holds one training "
        "(default: results/NAME, after the folder of --data_dir)",
    )
    parser.add_argument(
        "--resume",
        default="",
        metavar="last|PATH",
        help="go on from the last checkpoint of --out_dir, or from that of another folder, with its configuration",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the training that --out_dir holds when this one starts, but no file of other software; with "
        "--resume, only the checkpoints after the one to go on from",
    )


def run(args):
    """Train, or go on with a training."""
    processes.explain_termination(processes.launched_for(args.backend), "--resume last")
    given = command_line.given_settings(args)
    preset = None if args.resume else command_line.chosen_preset(args)
    training.run(args.backend, args.out_dir, given, preset, args.resume, args.overwrite, args.dry_run)

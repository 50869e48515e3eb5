"""Train MedSegDiff on a folder of images and masks."""

from guided_diffusion_core import command_line, training
from guided_diffusion_core.backends import backend_module, start_backend
from guided_diffusion_core.config import resolve
from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.system import processes
from guided_diffusion_core.training.validation import open_validation


def add_flags(parser):
    """Add the flags."""
    parser.description = __doc__
    command_line.add_run_flags(parser, "data", "model", "diffusion", "training", "compute")
    parser.add_argument(
        "--out_dir",
        default="./results/",
        metavar="FOLDER",
        help="folder for the log, the configuration and the checkpoints (default: ./results/)",
    )
    parser.add_argument(
        "--resume",
        default="",
        metavar="last|PATH",
        help="go on from the last checkpoint of --out_dir, or from that of another folder, with its configuration",
    )


def run(args):
    """Train, or go on with a training."""
    found = processes.launched_for(args.backend)
    processes.explain_termination(found, "--resume last")
    if args.resume:
        step, config, networks, validated = training.resumed_config(
            args.resume, args.out_dir, command_line.given_settings(args), found.size
        )
    else:
        step = 0
        networks = None
        validated = None
        config = resolve(command_line.given_settings(args), preset=command_line.chosen_preset(args)).replace(
            processes=found.size
        )
    dataset = open_dataset(config.data, config.model.image_size, "Training", need_masks=True)
    config = training.fit_to_data(
        config, dataset, in_ch_given=hasattr(args, "in_ch"), mask_channels_given=hasattr(args, "mask_channels")
    )
    validation = open_validation(config, args.out_dir, training.last_step(config.training), validated)
    summary = command_line.configuration_text(config, backend=args.backend, out_dir=args.out_dir, examples=len(dataset))
    if found.rank == 0:
        print(summary)
    if not args.dry_run:
        start_backend(args.backend, mixed_precision=config.compute.mixed_precision)
        if found.rank == 0:
            training.prepare_run(args.out_dir, summary)
        group = backend_module(args.backend, "dist_util").setup_dist()
        loop = backend_module(args.backend, "train_util").create_train_loop(config, dataset, step, networks)
        training.run_training(loop, config, args.out_dir, validation)
        group.close()

"""Sample masks for a folder of images with a trained network."""

import dataclasses
import json

from guided_diffusion_core import checkpoints, command_line, sampling
from guided_diffusion_core.backends import backend_module, start_backend
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.sampling.folder import part_of, require_one_sharing
from guided_diffusion_core.system import processes
from medsegdiff.sampling import folder_run, open_folder, open_image


def add_flags(parser):
    """Add the flags."""
    parser.description = __doc__
    command_line.add_run_flags(parser, "data", "model", "diffusion", "sampling", "compute")
    parser.add_argument(
        "--model_path",
        default="",
        metavar="PATH",
        help="checkpoint: a .safetensors file, a folder of checkpoints/, a training's --out_dir (its last "
        "checkpoint), or OUT_DIR/checkpoints/best",
    )
    parser.add_argument(
        "--image",
        default="",
        metavar="FILE",
        help="one picture or volume to sample in place of a --data_dir; a folder is a DICOM series",
    )
    parser.add_argument(
        "--out_dir", default="./results/", metavar="FOLDER", help="folder for the masks (default: ./results/)"
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=1,
        metavar="INT",
        help="images per batch, always as many; each brings its whole ensemble (default: 1)",
    )
    parser.add_argument(
        "--continue",
        dest="resume",
        nargs="?",
        const=True,
        default=False,
        type=command_line.boolean,
        metavar="True|False",
        help="leave out the cases whose masks are in --out_dir; they must come "
        "from the same settings (default: False, sample them again)",
    )
    parser.add_argument(
        "--num_parts",
        type=int,
        default=1,
        metavar="INT",
        help="processes that share the cases, each started with a --part_id of its own; those of torchrun "
        "or mpirun share them without it (default: 1)",
    )
    parser.add_argument(
        "--part_id",
        type=int,
        default=0,
        metavar="INT",
        help="which part of the cases this process samples, from 0 on (default: 0)",
    )


def run(args):
    """Sample the masks."""
    found = processes.launched_for(args.backend)
    require_one_sharing(found, args.part_id, args.num_parts)
    processes.explain_termination(found, "--continue")
    if args.image and "data_dir" in command_line.given_settings(args):
        raise found_expected("--image", f"{args.image!r} and --data_dir", "one of them", "Leave one out.")
    path = checkpoints.find(args.model_path)
    config = sampling.sampling_config(
        path, command_line.given_settings(args), command_line.chosen_preset(args)
    ).replace(processes=found.size)
    if not args.dry_run:
        # before the data: a device that is not there is refused at once
        runtime = start_backend(args.backend, found.rank == 0, **dataclasses.asdict(config.compute))
    if args.image:
        # the report names the data of the run, which must be the same when the run is continued
        config = config.replace(data_dir=args.image)
        dataset = open_image(args.image, config, args.batch_size)
    else:
        dataset = open_folder(config, args.batch_size)
    part_of(dataset.cases(), args.part_id, args.num_parts)
    run = folder_run(
        args.backend,
        path,
        config,
        dataset,
        args.out_dir,
        args.batch_size,
        part_id=args.part_id,
        num_parts=args.num_parts,
        resume=args.resume,
    )
    if found.rank == 0:
        print(json.dumps(run.settings, indent=2))
    if args.dry_run:
        return
    model, _ = backend_module(args.backend, "build").load_network(path)
    group = backend_module(args.backend, "dist_util").setup_dist()
    method = backend_module(args.backend, "methods").create_method(config)
    device = str(runtime.current.device)
    run = dataclasses.replace(run, group=group, device=device, gpu_memory_mib=runtime.gpu_memory_mib)
    run.run(method.sampler(model, config.sampling, NoiseTape(config.seed)))
    group.close()

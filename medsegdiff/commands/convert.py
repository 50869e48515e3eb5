"""Convert a checkpoint between .pt/.pth (the original's), .pkl (Jittor's) and .safetensors, bitwise."""

import dataclasses

from guided_diffusion_core import command_line
from guided_diffusion_core.config import DataConfig, DiffusionConfig, ModelConfig
from guided_diffusion_core.conversion import convert, verify


def add_flags(parser):
    """Add the flags."""
    parser.description = __doc__
    parser.add_argument("source", metavar="IN", help="file to read; its ending names the format")
    parser.add_argument("target", metavar="OUT", help="file to write, which must not be there yet")
    for flag, text in (
        ("--dry_run", "read and check IN, print what would be done, write nothing"),
        (
            "--verify",
            "afterwards run IN and OUT in both backends, which must be installed, and print the largest difference",
        ),
    ):
        parser.add_argument(
            flag,
            nargs="?",
            const=True,
            default=False,
            type=command_line.boolean,
            metavar="True|False",
            help=f"{text} (default: False)",
        )
    command_line.add_device(parser, "cpu")  # rounds more finely than a GPU: the backends are compared
    parser.add_argument(
        "--state",
        default="",
        metavar="NAME",
        help="which state dict of IN to take where a training's checkpoint has several, such as model or ema; names "
        "inside each other are joined by / (default: the only one)",
    )
    group = parser.add_argument_group(
        "settings",
        "What names and shapes show is read from IN, and a flag that contradicts it is an error. "
        "The rest (image size, heads, dropout, diffusion) has the original's defaults unless given.",
    )
    for section in (ModelConfig, DiffusionConfig):
        command_line.add_settings(group, section, *(field.name for field in dataclasses.fields(section)))
    command_line.add_networks(parser)
    command_line.add_settings(group, DataConfig, "data_name")
    group.add_argument(
        "--normalisation",
        metavar="TEXT",
        help="rule by which intensities were scaled in training, as medsegdiff sample "
        "compares it (default: the original's for the --data_name)",
    )


def run(args):
    """Convert the checkpoint; return 1 where `--verify` finds a difference."""
    given = command_line.given_settings(args)
    device = given.pop("device")  # of --verify, and none of the checkpoint's settings
    if args.normalisation is not None:
        given["normalisation"] = args.normalisation
    convert.check_target(args.target)
    if args.verify:
        verify.check_backends(device)
    source = convert.read(args.source, given, args.state)
    print("\n".join((f"{args.source}: {len(source.arrays)} tensors.", *source.notes)))
    if args.dry_run:
        print(f"Nothing written (--dry_run): {args.target}")
        return 0
    convert.write(args.target, source)
    print(f"Written: {args.target}")
    if not args.target.endswith(".safetensors"):
        print(f"It holds the weights alone. Flags of the network in it: {convert.flags(source.config)}")
    if not args.verify:
        return 0
    return verify.verify(args.source, args.target, given, source.config, device, args.state)

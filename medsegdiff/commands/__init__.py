"""The commands of `medsegdiff`: one module each, with `add_flags(parser)` and `run(args)`."""

from guided_diffusion_core.command_line import Command


def _command(name, help):
    return Command.in_module(name, help, f"medsegdiff.commands.{name.replace('-', '_')}")


COMMANDS = (
    _command("train", "train a network on a folder of images and masks"),
    _command("sample", "sample masks for a folder of images with a trained network"),
    _command("score", "score predicted masks against the ground truth"),
    _command("check-data", "find the problems of a data set, and take its fingerprint"),
    _command("convert", "convert a checkpoint between PyTorch's, Jittor's and safetensors files"),
    _command("compare", "compare two runs' masks of the same cases"),
    _command("parity", "compare what the two backends compute, tensor by tensor"),
    _command("demo", "train, sample and score on synthetic images with every installed backend"),
    _command("doctor", "show versions, devices and what is missing, to paste into a bug report"),
)


def find(name):
    """Return the command of a name."""
    return next(command for command in COMMANDS if command.name == name)

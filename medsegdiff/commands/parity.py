"""`medsegdiff parity`: the parity suite, which is also `python -m parity`."""

from guided_diffusion_core.command_line import add_commands
from parity import program as suite


def add_flags(parser):
    """Add the commands of the parity suite."""
    parser.description = suite.__doc__
    add_commands(parser, suite.COMMANDS)

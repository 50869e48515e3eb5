"""MedSegDiff in PyTorch and Jittor: segmentation of medical images by diffusion.

`medsegdiff COMMAND --help` describes a command and its flags. Exit codes: 0 done, 1 a check failed, 2 wrong input.
"""

import sys

from guided_diffusion_core import command_line
from medsegdiff import __version__
from medsegdiff.commands import COMMANDS


def main():
    """Run `medsegdiff` and end the process with the command's exit code."""
    argv = sys.argv[1:] or ["--help"]
    command_line.run_program("medsegdiff", __doc__, COMMANDS, argv, version=__version__)


if __name__ == "__main__":
    main()

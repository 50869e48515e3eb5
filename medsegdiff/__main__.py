"""MedSegDiff in PyTorch and Jittor: segmentation of medical images by diffusion.

`medsegdiff COMMAND --help` describes a command and its flags. Exit codes: 0 done, 1 a check failed, 2 wrong input.
"""

import sys

from guided_diffusion_core.system.quick_exit import leaving_at_once
from medsegdiff import __version__


def main():
    """Run `medsegdiff` and end the process with the command's exit code."""
    with leaving_at_once():
        # imported here, where Ctrl-C leaves no traceback
        from guided_diffusion_core import command_line
        from medsegdiff.commands import COMMANDS

        argv = sys.argv[1:] or ["--help"]
        command_line.run_program("medsegdiff", __doc__, COMMANDS, argv, version=__version__)


if __name__ == "__main__":
    main()

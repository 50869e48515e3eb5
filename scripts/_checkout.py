"""Run a command of `medsegdiff` from a checkout that is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guided_diffusion_core.system.quick_exit import leaving_at_once


def run(name):
    """Run the command of a name under the name of the script that calls this."""
    with leaving_at_once():
        # imported here, where Ctrl-C leaves no traceback
        from guided_diffusion_core.command_line import run_single
        from medsegdiff.commands import find

        run_single(find(name))

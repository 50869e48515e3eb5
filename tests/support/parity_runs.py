"""Runs of the public command `python -m parity` in the tests."""

import json
import os
import subprocess
import sys

from support.backends import ROOT


def parity(*args, cwd=ROOT, modules=()):
    """Run `python -m parity ARGS` and return the finished process.

    cwd:     folder in which it runs.
    modules: folders of further modules that it can import.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *modules)))}
    return subprocess.run(
        [sys.executable, "-m", "parity", *map(str, args)], cwd=cwd, env=environment, text=True, capture_output=True
    )


def result_of(out_dir):
    """Read the `result.json` of the folder of a run."""
    return json.loads((out_dir / "result.json").read_text())

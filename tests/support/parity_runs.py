"""Running the public command `python -m parity` in the tests."""

import json
import os
import subprocess
import sys

from support.backends import ROOT


def parity(*args, cwd=ROOT, modules=()):
    """The finished process of `python -m parity ARGS`; modules: folders of further modules."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *modules)))}
    return subprocess.run(
        [sys.executable, "-m", "parity", *map(str, args)], cwd=cwd, env=environment, text=True, capture_output=True
    )


def result_of(out_dir):
    """The `result.json` of a run's folder."""
    return json.loads((out_dir / "result.json").read_text())

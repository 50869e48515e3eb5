"""The process of one implementation and one case: prepares, then does the measured thing once for each line
that it reads.

Started by `run.py`, so that implementations take turns and have separate memory peaks. Answers with JSON lines
on a pipe of its own; what the frameworks print goes to the log of the run.
"""

import contextlib
import json
import os
import platform
import resource
import sys
import time
import traceback

import numpy as np

from benchmarks import machine
from benchmarks.cases import Case
from guided_diffusion_core.errors import UserError

# names of implementations beside the backends'
MACHINE = "machine"
PEER = "peer"


def _memory_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def _timed(result):
    """Put wall and processor seconds of the block, of all threads, into a dict."""
    wall = time.perf_counter()
    cpu = time.process_time()
    yield
    result |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


class _Machine:
    """The limits of the machine as something to measure: all of them in each repetition."""

    def __init__(self, threads):
        self.limits = machine.limits(threads)

    def versions(self):
        return {"numpy": np.__version__, "python": platform.python_version()}

    def prepare(self, case, **_):
        pass

    def check(self):
        return {}

    def scale(self):
        return 1

    def repeat(self):
        rates = {}
        for name, (function, amount) in self.limits.items():
            seconds = {}
            with _timed(seconds):
                function()
            rates[name] = {clock: amount / value for clock, value in seconds.items()}
        return rates


def _open(job):
    """The implementation that a job names, imported in this process alone."""
    if job["implementation"] == MACHINE:
        return _Machine(job["threads"])
    if job["implementation"] == PEER:
        from benchmarks.peer import Peer

        return Peer(job["peer"], job["threads"])
    from benchmarks.ours import Ours

    return Ours(job["implementation"], job["threads"])


def serve(job, answers):
    """Prepare a job, then answer each line of the standard input; the first answer says it is ready.

    job: implementation, case (fields of `Case` or None), peer (folder), threads, scratch (folder), arrays (file
         for what is compared).
    """

    def answer(tree):
        answers.write(json.dumps(tree) + "\n")
        answers.flush()

    try:
        measured = _open(job)
        measured.prepare(Case(**job["case"]) if job["case"] else None, scratch=job["scratch"])
        np.savez(job["arrays"], **measured.check())
        first = {}
        with _timed(first):
            measured.repeat()
        answer(
            {
                "versions": measured.versions(),
                "scale": measured.scale(),
                "first": first,
                "cpu_so_far": sum(os.times()[:4]),
                "memory_mib": _memory_mib(),
            }
        )
        for _ in sys.stdin:
            seconds = {}
            with _timed(seconds):
                extra = measured.repeat()
            answer(
                {**seconds, "memory_mib": _memory_mib(), "rates": extra if job["implementation"] == MACHINE else None}
            )
    except Exception as error:
        user = isinstance(error, UserError)
        if not user:
            traceback.print_exception(error)
        answer({"error": f"{type(error).__name__}: {error}", "user": user})


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[2]), "w", encoding="utf-8") as stream:
        serve(json.loads(sys.argv[1]), stream)

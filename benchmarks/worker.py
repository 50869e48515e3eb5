"""The process of one implementation and one case. It prepares, then runs one repetition per line that it reads.

`run.py` starts one such process per implementation, so that implementations can take turns and have separate
memory peaks. Answers are JSON lines on a separate pipe; the output of the frameworks goes to a log file.
"""

import contextlib
import json
import os
import platform
import sys
import time

import numpy as np

from benchmarks import machine
from benchmarks.cases import Case
from benchmarks.implementations import MACHINE, PEER
from guided_diffusion_core.system.devices import CPU
from guided_diffusion_core.system.json_worker import failure, send

# On a GPU, where a repetition may take milliseconds, it runs so many times that it lasts this long.
SECONDS = 0.3


@contextlib.contextmanager
def _timed(result):
    """Add the wall seconds and the processor seconds (of all threads) of the block to a dict."""
    wall = time.perf_counter()
    cpu = time.process_time()
    yield
    result |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


class _Machine:
    """The limits of the machine, with the methods of `ours.Ours`; each repetition measures all of them."""

    def __init__(self, threads, device):
        self.limits = machine.limits(threads, device)
        self.gpu = {} if device == CPU else {"gpu": machine.gpu_name(device)}

    def versions(self):
        return {"numpy": np.__version__, "python": platform.python_version(), **self.gpu}

    def prepare(self, case, **_):
        pass

    def check(self):
        return {}

    def scale(self):
        return 1

    def peak_memory_mib(self):
        return 0

    def repeat(self):
        rates = {}
        for name, (function, amount) in self.limits.items():
            seconds = {}
            with _timed(seconds):
                function()
            rates[name] = {clock: amount / value for clock, value in seconds.items()}
        return rates


def _open(job):
    """Return the implementation that a job names; nothing else is imported into this process."""
    if job["implementation"] == MACHINE:
        return _Machine(job["threads"], job["device"])
    if job["implementation"] == PEER:
        from benchmarks.peer import Peer

        return Peer(job["peer"], job["threads"], job["device"])
    from benchmarks.ours import Ours

    return Ours(job["implementation"], job["threads"], job["device"])


def _repetitions(measured, job):
    """Return how often the operation runs in one repetition: once on a CPU, on a GPU until `SECONDS` have passed."""
    if job["device"] == CPU or job["implementation"] == MACHINE:
        return 1
    seconds = {}
    with _timed(seconds):
        measured.repeat()  # a second time: the first one chooses algorithms and allocates memory
    return max(1, round(SECONDS / seconds["wall"]))


def serve(job, answers):
    """Prepare a job, then answer each line of the standard input; the first answer follows the preparation.

    job:     implementation, case (fields of `Case` or None), peer (folder), threads, device, scratch (folder),
             arrays (file for the outputs to compare).
    answers: stream for the answers.
    """
    try:
        measured = _open(job)
        case = Case(**job["case"]) if job["case"] else None
        measured.prepare(case, scratch=job["scratch"])
        np.savez(job["arrays"], **measured.check())
        first = {}
        with _timed(first):
            measured.repeat()
        count = _repetitions(measured, job)
        send(
            answers,
            {
                "versions": measured.versions(),
                "scale": measured.scale() / count,
                "first": first,
                "cpu_so_far": sum(os.times()[:4]),
                "memory_mib": measured.peak_memory_mib(),
            },
        )
        for _ in sys.stdin:
            seconds = {}
            with _timed(seconds):
                for _ in range(count):
                    result = measured.repeat()
            rates = result if job["implementation"] == MACHINE else None
            send(answers, {**seconds, "memory_mib": measured.peak_memory_mib(), "rates": rates})
    except Exception as error:
        send(answers, failure(error))


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[2]), "w", encoding="utf-8") as stream:
        serve(json.loads(sys.argv[1]), stream)

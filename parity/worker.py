"""The process of one backend: reads jobs from its standard input, one JSON line each, runs them,
writes sections into a dump and answers with one JSON line on a pipe of its own.

Started by `parity/run.py`. What the framework prints goes to the log of the run.
"""
import contextlib
import importlib
import json
import os
import sys
import time
import traceback

import numpy as np

from guided_diffusion_core import cli
from guided_diffusion_core.errors import UserError
from parity.dump import LAYERS, MOVED, read_section, write_section
from parity.families import FAMILIES, run_layers
from parity.faults import planted
from parity.recorder import Recorder
from parity.rule import distance


def moved(weights, variant, precision):
    """The weights of a variant: as they are, or each value that is not zero moved by one ulp of the
    precision that the run computes in."""
    if variant not in MOVED:
        return weights
    target = np.inf if variant == MOVED[0] else -np.inf
    return {name: np.where(value != 0, np.nextafter(value.astype(precision), np.asarray(target, precision)), 0)
            .astype(precision) if value.dtype.kind == "f" else value for name, value in weights.items()}


class Worker:
    """Runs jobs with one backend and one suite.

    backend: "pytorch" or "jittor". suite: name of the suite's module. threads: of the computation.
    """

    def __init__(self, backend, suite, threads):
        self.suite = importlib.import_module(suite)
        self.cases = {case.name: case for case in self.suite.CASES}
        self.port = self.suite.open_port(backend)
        self.verbs = cli.backend_module(backend, "runtime")
        self.verbs.set_threads(threads)

    def run(self, job):
        """Run one job: record a case in a precision and write its section.

        job: case, precision, variant, folder of the dump; fault, a name or None; source, the files of
             another section: for the variant `LAYERS` the one whose inputs the layers are given, for
             those in `MOVED` the plain float64 run.
        """
        case = self.cases[job["case"]]
        self.verbs.set_precision(job["precision"])
        recorder = Recorder(self.verbs)
        arrays = moved(self.suite.weights(case), job["variant"], job["precision"])
        with self._fault(job.get("fault")):
            if job["variant"] == LAYERS:
                run_layers(self.port, case, arrays, read_section(job["source"]), recorder)
            else:
                family = {**FAMILIES, **self.port.families}[case.family]
                family(self.port, case, arrays, self.suite.inputs(case), recorder)
            section = recorder.section(case, job["precision"], job["variant"])
        if job["variant"] in MOVED:
            _keep_distances(section, read_section(job["source"]))
        write_section(job["folder"], section)

    def _fault(self, name):
        """The context in which a planted fault holds."""
        if name is None:
            return contextlib.nullcontext()
        return planted(name, self.port)


def _keep_distances(section, truth):
    """Replace a section's tensors by their distances from those of another one."""
    expected = truth.by_key()
    section.errors = {
        entry.key: [float(norm) for norm in distance(truth.array(expected[entry.key]), section.array(entry))]
        for entry in section.entries if entry.dtype.startswith("float")}
    section.entries, section.tensors = [], {}


def serve(backend, suite, threads, answers):
    """Answer each job with {"seconds"}, or {"error", "user"}; the first answer says it is ready."""
    def answer(tree):
        answers.write(json.dumps(tree) + "\n")
        answers.flush()

    try:
        worker = Worker(backend, suite, threads)
    except Exception as error:
        answer(_failure(error))
        return
    answer({"versions": worker.verbs.versions()})
    for line in sys.stdin:
        began = time.perf_counter()
        try:
            worker.run(json.loads(line))
            answer({"seconds": time.perf_counter() - began})
        except Exception as error:
            answer(_failure(error))


def _failure(error):
    if not isinstance(error, UserError):
        traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {error}", "user": isinstance(error, UserError)}


if __name__ == "__main__":
    name, suite_name, count, pipe = sys.argv[1:]
    with os.fdopen(int(pipe), "w", encoding="utf-8") as stream:
        serve(name, suite_name, int(count), stream)

"""The process of one backend. It reads jobs from its standard input, one JSON line each, and runs them.

For each job it writes a section into a dump and answers with one JSON line on a separate pipe.
`parity/run.py` starts this process. The output of the framework goes to a log file.
"""

import contextlib
import importlib
import json
import os
import sys
import time

import numpy as np

from guided_diffusion_core.backends import start_backend
from guided_diffusion_core.system.json_worker import failure, send
from parity.dump import LAYERS, PERTURBED, PLAIN, read_section, write_section
from parity.families import FAMILIES, run_layers
from parity.faults import planted
from parity.recorder import Recorder
from parity.rule import distance


def perturbed(arrays, variant, precision):
    """Return the arrays (by name) of a variant: unchanged, or with each nonzero value perturbed by one ulp.

    The ulp is that of the precision in which the run computes. For layers by themselves, each value goes up or
    down at random: changes in one direction would add up in a sum faster than rounding errors do.
    """
    if variant in PERTURBED[PLAIN]:
        up = variant == PERTURBED[PLAIN][0]
        return {name: _perturbed(value, lambda values: up, precision) for name, value in arrays.items()}
    if variant in PERTURBED[LAYERS]:
        draw = PERTURBED[LAYERS].index(variant)
        salt = np.random.default_rng(draw).integers(2**64, dtype=np.uint64)
        return {
            name: _perturbed(value, lambda values: _coin(values, salt), precision) for name, value in arrays.items()
        }
    return arrays


def _perturbed(value, is_up, precision):
    if value.dtype.kind != "f":
        return value
    values = value.astype(precision)
    target = np.where(is_up(values), np.inf, -np.inf).astype(precision)
    return np.where(values != 0, np.nextafter(values, target), 0).astype(precision)


def _coin(values, salt):
    """Draw a random bool for each number, the same for equal numbers.

    Dropout and the borders of a picture leave many equal numbers. If several of them are the largest of a
    window, they have to stay equal for maximum pooling.
    """
    bits = values.astype(np.float64).view(np.uint64) ^ salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # of SplitMix64, Steele et al. 2014
        bits = (bits ^ bits >> np.uint64(shift)) * np.uint64(factor)
    return bits >> np.uint64(63) == 1


class Worker:
    """Runs jobs with one backend and one suite.

    backend: its name in the table of `guided_diffusion_core/backends.py`.
    suite:   name of the suite's module. threads, device: of the computation.
    """

    def __init__(self, backend, suite, threads, device):
        self.suite = importlib.import_module(suite)
        self.cases = {case.name: case for case in self.suite.CASES}
        self.verbs = start_backend(backend, threads=threads, device=device)
        self.port = self.suite.open_port(backend)

    def run(self, job):
        """Run one job: record a case in a precision and write its section.

        job: case, precision, variant, folder of the dump; fault, source and truth as in `parity.run.Job`.
        """
        case = self.cases[job["case"]]
        self.verbs.set_precision(job["precision"])
        recorder = Recorder(self.verbs)
        arrays = perturbed(self.suite.weights(case), job["variant"], job["precision"])
        with self._fault(job.get("fault")):
            if job["source"]:
                source = read_section(job["source"])
                source.tensors = perturbed(source.tensors, job["variant"], job["precision"])
                run_layers(self.port, case, arrays, source, recorder)
            else:
                family = {**FAMILIES, **self.port.families}[case.family]
                family(self.port, case, arrays, self.suite.inputs(case), recorder)
            section = recorder.section(case, job["precision"], job["variant"])
        if job["truth"]:
            _keep_distances(section, read_section(job["truth"]))
        write_section(job["folder"], section)

    def _fault(self, name):
        """Return a context that plants a fault; without a name, one that does nothing."""
        if name is None:
            return contextlib.nullcontext()
        return planted(name, self.port)


def _keep_distances(section, truth):
    """Replace a section's tensors by their distances from those of another one."""
    expected = truth.by_key()
    section.errors = {
        entry.key: [float(norm) for norm in distance(truth.array(expected[entry.key]), section.array(entry))]
        for entry in section.entries
        if entry.dtype.startswith("float")
    }
    section.entries = []
    section.tensors = {}


def serve(backend, suite, threads, device, answers):
    """Answer each job with {"seconds"} or with a failure; the first answer has the versions.

    answers: stream for the answers.
    """
    try:
        worker = Worker(backend, suite, threads, device)
    except Exception as error:
        send(answers, failure(error))
        return
    send(answers, {"versions": worker.verbs.versions()})
    for line in sys.stdin:
        began = time.perf_counter()
        try:
            worker.run(json.loads(line))
            send(answers, {"seconds": time.perf_counter() - began})
        except Exception as error:
            send(answers, failure(error))


if __name__ == "__main__":
    name, suite_name, count, device_name, pipe = sys.argv[1:]
    with os.fdopen(int(pipe), "w", encoding="utf-8") as stream:
        serve(name, suite_name, int(count), device_name, stream)

"""Recording of cases: one process per backend and precision, backends in parallel, dumps on disk."""

import dataclasses
import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tqdm import tqdm

from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.devices import CPU
from guided_diffusion_core.system.files import make_writable_folder
from guided_diffusion_core.system.json_worker import WorkerFailed, WorkerProcess
from parity.dump import LAYERS, MANIFEST, PERTURBED, PLAIN, Dump, SectionKey, read_dump, section_stem
from parity.protocol import PRECISIONS

SUITE = "parity.medsegdiff"


def load_suite(name):
    """Return the module of a suite. Raises `UserError` if it cannot be imported or is not a suite."""
    try:
        suite = importlib.import_module(name)
    except ImportError as error:
        raise found_expected(
            f"--suite {name}",
            f"no module ({error})",
            "the name of an importable module",
            "Run from the folder that holds it.",
        ) from error
    missing = [part for part in ("CASES", "weights", "inputs", "open_port") if not hasattr(suite, part)]
    if missing:
        raise found_expected(
            f"--suite {name}",
            f"a module without {', '.join(missing)}",
            "a suite (parity/protocol.py)",
            "Define what is missing.",
        )
    return suite


def select_cases(suite, patterns):
    """Return the cases that match any pattern, in the order of the suite.

    A pattern is "all", a family, a name, or a name with * and ?.
    Raises `UserError` for a pattern without a case.
    """
    chosen = set()
    for pattern in patterns:
        found = set()
        for case in suite.CASES:
            if pattern in ("all", case.family) or fnmatchcase(case.name, pattern):
                found.add(case.name)
        if not found:
            names = ", ".join(case.name for case in suite.CASES)
            raise found_expected(
                f"CASE {pattern!r}",
                "no case of that name",
                f"all, or one of {names}",
                "python -m parity list shows them.",
            )
        chosen |= found
    return [case for case in suite.CASES if case.name in chosen]


@dataclass
class Job(SectionKey):
    """One section to record.

    fault:  name of a fault to plant meanwhile, or None.
    source: for layers by themselves: files (without suffix) of the section with their inputs.
    truth:  for a perturbed variant: files (without suffix) of the section that distances are measured from.
    """

    fault: str | None = None
    source: str | None = None
    truth: str | None = None


def jobs_of(case, precisions, is_reference, folder):
    """Return the jobs of one case for one backend, in order.

    precisions:   in which candidates are compared. is_reference: record its own rounding error as well.
    folder:       of the backend's dump.
    """
    if is_reference:
        wanted = [("float64", PLAIN), ("float32", PLAIN)]
        wanted += [("float32", variant) for variant in PERTURBED[PLAIN]]
        if "float64" in precisions and "float64" in case.precisions:
            wanted += [("float64", variant) for variant in PERTURBED[PLAIN]]
    else:
        wanted = [(precision, PLAIN) for precision in case.precisions if precision in precisions]
    truth = str(Path(folder) / section_stem(case.name, "float64", PLAIN))
    jobs = []
    for precision, variant in wanted:
        jobs.append(Job(case.name, precision, variant, truth=truth if variant in PERTURBED[PLAIN] else None))
    return jobs


def layer_jobs(case, reference_folder, is_reference, fault=None):
    """Return the jobs that run every layer of a case by itself, on the inputs of the reference's float32 run.

    is_reference: record its own rounding error as well, in float32. The error in float64 follows from it by the
                  ratio of the two eps.
    """
    folder = Path(reference_folder)
    source = str(folder / section_stem(case.name, "float32", PLAIN))
    truth = str(folder / section_stem(case.name, "float64", LAYERS))
    jobs = [Job(case.name, precision, LAYERS, fault, source) for precision in ("float32", "float64")]
    if is_reference:
        for variant in PERTURBED[LAYERS]:
            jobs.append(Job(case.name, "float32", variant, source=source, truth=truth))
    return jobs


class Process:
    """The process of one backend in one precision (`parity/worker.py`), started on first use.

    Jittor misreads small arrays in float64 after float32, so each precision has a process of its own.
    device: on which it computes.
    log:    file for everything that the process prints.
    """

    def __init__(self, backend, suite, threads, device, log):
        self.backend = backend
        self.suite = suite
        self.threads = threads
        self.device = device
        self.log = Path(log)
        self.versions = None
        self._worker = None

    def start(self):
        """Start the process and wait until it has imported its framework."""
        self._worker = WorkerProcess(
            self.backend,
            "parity.worker",
            [self.backend, self.suite, str(self.threads), self.device],
            self.log,
            {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"},
        )
        self.versions = self._worker.answer()["versions"]

    def run(self, job, folder):
        """Record one job into a folder."""
        if self._worker is None:
            self.start()
        self._worker.request({**dataclasses.asdict(job), "folder": str(folder)})
        return self._worker.answer()

    def stop(self):
        """End the process."""
        if self._worker:
            self._worker.stop()
            self._worker = None


AT = "@"  # between a backend and its device


class Backend:
    """The processes of one backend and the dump that they fill.

    name:   of the backend, or of a backend and a device, such as "pytorch@cuda".
    folder: of the dump and of the logs.
    device: of a name without one.
    """

    def __init__(self, name, suite, folder, threads=1, device=CPU):
        self.name = name
        self.folder = Path(make_writable_folder(folder, "--out_dir"))
        backend, _, own_device = name.partition(AT)
        device = own_device or device
        self.processes = {
            precision: Process(backend, suite, threads, device, self.folder / f"{precision}.log")
            for precision in PRECISIONS
        }
        self.flags = {"suite": suite, "threads": str(threads), "device": device}
        self.dump = None

    def record(self, job):
        """Record a job if the dump does not have it yet."""
        if self.dump and job.key in self.dump.files:
            return
        process = self.processes[job.precision]
        process.run(job, self.folder)
        if self.dump is None:
            self.dump = Dump(self.folder, self.name, process.versions, self.flags)
        self.dump.add(job.key, section_stem(*job.key))

    def resume(self):
        """Keep the sections that an earlier run has recorded in the folder."""
        if (self.folder / MANIFEST).exists():
            self.dump = read_dump(self.folder)

    def forget(self, keys):
        """Remove sections from the dump, so that they are recorded again."""
        for key in keys:
            if self.dump:
                self.dump.files.pop(key, None)

    def stop(self):
        """End the processes."""
        for process in self.processes.values():
            process.stop()


def record(backends, jobs):
    """Record every backend's jobs, with the backends in parallel.

    backends: list of `Backend`. jobs: backend name -> list of `Job`.
    Raises `UserError` if a backend cannot run; the dumps keep what is already recorded.
    """
    lock = threading.Lock()
    stop = threading.Event()

    def run(backend, bar):
        for job in jobs[backend.name]:
            if stop.is_set():
                return
            backend.record(job)
            with lock:
                bar.set_postfix_str(f"{backend.name} {job.case} {job.precision}", refresh=False)
                bar.update()

    with (
        tqdm(total=sum(map(len, jobs.values())), unit="run", desc="recording", dynamic_ncols=True) as bar,
        ThreadPoolExecutor(len(backends)) as pool,
    ):
        futures = [pool.submit(run, backend, bar) for backend in backends]
        try:
            for future in futures:
                future.result()
        except WorkerFailed as error:
            raise UserError(str(error)) from error
        except KeyboardInterrupt:
            stop.set()  # first, so that no thread starts a process again
            for backend in backends:
                backend.stop()  # at once: the end of its job may be a minute away
            raise
        finally:
            stop.set()

"""Recording cases: one process per backend and precision, jobs side by side, dumps on disk."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tqdm import tqdm

from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.files import make_writable_folder
from parity.dump import LAYERS, MANIFEST, PERTURBED, PLAIN, Dump, SectionKey, read_dump, section_stem
from parity.protocol import PRECISIONS

SUITE = "parity.medsegdiff"
ROOT = Path(__file__).resolve().parents[1]


class WorkerFailed(Exception):
    """A backend's process ended or could not run a job; `user` tells whether the message is a user's."""

    def __init__(self, message, user=False):
        super().__init__(message)
        self.user = user


def load_suite(name):
    """The suite's module. Raises `UserError` if it cannot be imported or is none."""
    try:
        suite = importlib.import_module(name)
    except ImportError as error:
        raise found_expected(
            f"--suite {name}",
            f"no module ({error})",
            "the name of an importable module",
            "Run from the folder that holds it.",
        ) from error
    lacking = [part for part in ("CASES", "weights", "inputs", "open_port") if not hasattr(suite, part)]
    if lacking:
        raise found_expected(
            f"--suite {name}",
            f"a module without {', '.join(lacking)}",
            "a suite (parity/protocol.py)",
            "Define what is missing.",
        )
    return suite


def select_cases(suite, patterns):
    """The cases that any pattern names, in the suite's order: a name, a family, or with * and ?; "all".

    Raises `UserError` for a pattern without a case.
    """
    chosen = set()
    for pattern in patterns:
        found = {
            case.name
            for case in suite.CASES
            if pattern == "all" or pattern == case.family or fnmatchcase(case.name, pattern)
        }
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

    fault:  name of a planted fault that holds meanwhile. source: of layers alone, the files (without suffix) of the
            section whose inputs they are given. truth: of a moved variant, those of the one that distances are from.
    """

    fault: str | None = None
    source: str | None = None
    truth: str | None = None


def jobs_of(case, precisions, is_reference, folder):
    """The jobs of one case for one backend, in order.

    precisions:   in which candidates are compared. is_reference: record its own error as well.
    folder:       of the backend's dump.
    """
    if is_reference:
        wanted = [("float64", PLAIN), *(("float32", variant) for variant in (PLAIN, *PERTURBED[PLAIN]))]
        if "float64" in precisions and "float64" in case.precisions:
            wanted += [("float64", variant) for variant in PERTURBED[PLAIN]]
    else:
        wanted = [(precision, PLAIN) for precision in case.precisions if precision in precisions]
    truth = str(Path(folder) / section_stem(case.name, "float64", PLAIN))
    return [
        Job(case.name, precision, variant, truth=truth if variant in PERTURBED[PLAIN] else None)
        for precision, variant in wanted
    ]


def layer_jobs(case, reference_folder, is_reference, fault=None):
    """The jobs that run every layer of a case alone, on the inputs of the reference's float32 run, in order.

    is_reference: record its own error as well; of float64 that is float32's, smaller by the ratio of the two eps.
    """
    source, truth = (
        str(Path(reference_folder) / section_stem(case.name, precision, variant))
        for precision, variant in (("float32", PLAIN), ("float64", LAYERS))
    )
    jobs = [Job(case.name, precision, LAYERS, fault, source) for precision in ("float32", "float64")]
    return jobs + [
        Job(case.name, "float32", variant, source=source, truth=truth) for variant in PERTURBED[LAYERS] if is_reference
    ]


class Process:
    """The process of one backend in one precision (`parity/worker.py`), started on first use.

    Jittor misreads small arrays in float64 after float32, so that each precision has its own.
    log: file that takes what it prints.
    """

    def __init__(self, backend, suite, threads, log):
        self.backend = backend
        self.suite = suite
        self.threads = threads
        self.log = Path(log)
        self.versions = None
        self._process = None

    def start(self):
        """Start it and wait until its framework is imported."""
        read, write = os.pipe()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.getcwd(), os.environ.get("PYTHONPATH", "")]),
        }
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "parity.worker", self.backend, self.suite, str(self.threads), str(write)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(write,),
                env=environment,
                text=True,
                start_new_session=True,
            )
        os.close(write)
        self._answers = os.fdopen(read, encoding="utf-8")
        self.versions = self._answer()["versions"]

    def run(self, job, folder):
        """Record one job into a folder."""
        if self._process is None:
            self.start()
        request = {
            "case": job.case,
            "precision": job.precision,
            "variant": job.variant,
            "fault": job.fault,
            "source": job.source,
            "truth": job.truth,
            "folder": str(folder),
        }
        with contextlib.suppress(OSError):  # of a process that has ended: the missing answer says so
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._answers.readline()
        if not line:
            raise WorkerFailed(
                f"the process of {self.backend} ended (exit code {self._process.wait()}); its output: {self.log}"
            )
        tree = json.loads(line)
        if "error" in tree:
            raise WorkerFailed(
                f"{self.backend}: {tree['error']}" + ("" if tree["user"] else f"; see {self.log}"), tree["user"]
            )
        return tree

    def stop(self):
        """End it."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._answers.close()
            self._process = None


class Backend:
    """The processes of one backend and the dump that they fill.

    folder: of the dump; logs lie in it too.
    """

    def __init__(self, name, suite, folder, threads=1):
        self.name = name
        self.folder = Path(make_writable_folder(folder, "--out_dir"))
        self.processes = {
            precision: Process(name, suite, threads, self.folder / f"{precision}.log") for precision in PRECISIONS
        }
        self.flags = {"suite": suite, "threads": str(threads)}
        self.dump = None

    def record(self, job):
        """Record a job, unless the dump has it already."""
        if self.dump and job.key in self.dump.files:
            return
        process = self.processes[job.precision]
        process.run(job, self.folder)
        if self.dump is None:
            self.dump = Dump(self.folder, self.name, process.versions, self.flags)
        self.dump.add(job.key, section_stem(*job.key))

    def resume(self):
        """Keep what an earlier run has recorded in the folder."""
        if (self.folder / MANIFEST).exists():
            self.dump = read_dump(self.folder)

    def forget(self, keys):
        """Take sections out of the dump, so that they are recorded anew."""
        for key in keys:
            if self.dump:
                self.dump.files.pop(key, None)

    def stop(self):
        """End the processes."""
        for process in self.processes.values():
            process.stop()


def record(backends, jobs):
    """Record every backend's jobs, the backends side by side.

    backends: list of `Backend`. jobs: backend name -> list of `Job`.
    Raises `UserError` when a backend cannot run; what is recorded stays in its dump.
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
            stop.set()  # first, so that no lane starts a process again
            for backend in backends:
                backend.stop()  # not at the end of its job, which may be a minute away
            raise
        finally:
            stop.set()

"""Runs the measurements: for each case one process per implementation, which take turns, round by round."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.worker import MACHINE, PEER
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.files import make_writable_folder, write_atomic

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "results.json"
COLD = "jittor, cold cache"
# The commands of start and loading need packages that this project does not; scaling is one's own affair.
NOT_OF_PEER = ("start", "loading", "scaling")
LARGEST_DIFFERENCE = 1e-3  # of compared outputs, relative root mean square: rounding is far below


class Process:
    """The process of one implementation and case (`worker.py`).

    job: as of `worker.serve`, without scratch. folder: for its files. home: a home of its own (`COLD`), or None.
    """

    def __init__(self, job, folder, home=None):
        self.arrays = Path(folder) / f"{job['implementation']}.npz"
        self.log = Path(folder) / f"{job['implementation']}.log"
        job = {**job, "scratch": str(folder), "arrays": str(self.arrays)}
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(job["threads"]),
            "OMP_WAIT_POLICY": "passive",
            "TQDM_DISABLE": "1",
            **({"HOME": home, "JITTOR_HOME": home} if home else {}),
        }
        read, write = os.pipe()
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", json.dumps(job), str(write)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(write,),
                text=True,
            )
        os.close(write)
        self._answers = os.fdopen(read, encoding="utf-8")
        self._name = job["implementation"]

    def answer(self):
        """Its next answer, a dict. Raises `UserError` if it failed."""
        line = self._answers.readline()
        tree = (
            json.loads(line)
            if line
            else {"error": f"the process ended with code {self._process.wait()}", "user": False}
        )
        if "error" in tree:
            tail = "" if tree["user"] else "\n" + self.log.read_text(errors="replace")[-2000:]
            raise UserError(f"{self._name}: {tree['error']}{tail}")
        return tree

    def begin(self):
        """Let it do the measured thing once; its next answer has the seconds."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def stop(self):
        """End it."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._answers.close()
        self._process.kill()
        self._process.wait()


class Group:
    """Processes of one implementation and case that work at the same time.

    job, folder: as of `Process`. count: how many.
    """

    def __init__(self, job, folder, count):
        self._processes = []
        self.ready = None
        try:
            for index in range(count):
                own = Path(folder) / str(index)
                own.mkdir(exist_ok=True)
                self._processes.append(Process(job, own))
                ready = self._processes[-1].answer()  # one after the other: the first compiles for all
                self.ready = self.ready or ready
        except BaseException:
            self.stop()
            raise
        self.arrays = self._processes[0].arrays

    def repeat(self):
        """Let all do the measured thing once: the seconds until the last is done; processor seconds and memory
        of all together."""
        for process in self._processes:
            process.begin()
        answers = [process.answer() for process in self._processes]
        return {
            "wall": max(answer["wall"] for answer in answers),
            "rates": answers[0]["rates"],
            **{name: sum(answer[name] for answer in answers) for name in ("cpu", "memory_mib")},
        }

    def stop(self):
        """End them."""
        for process in self._processes:
            process.stop()


class Benchmark:
    """A run of cases, whose results are kept in a folder from case to case.

    out_dir: folder of `results.json`. implementations: names, backends and `PEER`. peer: its folder or "".
    threads: of each process. repeats: rounds. seconds: of a case, after which no further round begins.
    cold: measure Jittor's first start as well. resume: keep what is measured there already.
    """

    def __init__(self, out_dir, implementations, peer, threads, repeats, seconds, cold, resume):
        self.out_dir = Path(make_writable_folder(out_dir, "--out_dir"))
        self.implementations = implementations
        self.peer = peer
        self.cold = cold
        self.results = {
            "settings": {
                "threads": threads,
                "repeats": repeats,
                "seconds": seconds,
                "implementations": implementations,
            },
            "machine": describe_machine(),
            "versions": {},
            "limits": {},
            "rows": [],
        }
        self._take_over(resume)

    def _take_over(self, resume):
        path = self.out_dir / RESULTS
        if not path.exists():
            return
        if not resume:
            raise found_expected(
                path,
                "results of an earlier run",
                "an empty folder",
                "Add --resume to go on with it, or give another --out_dir.",
            )
        earlier = json.loads(path.read_text())
        if earlier["settings"] != self.results["settings"]:
            raise found_expected(
                path,
                f"results measured with {earlier['settings']}",
                str(self.results["settings"]),
                "Give the same settings, or another --out_dir.",
            )
        self.results = earlier

    def run(self, cases):
        """Measure all cases that are not in the results yet; yields after each one."""
        done = {row["case"]["name"] for row in self.results["rows"]}
        cases = [case for case in cases if case.name not in done]
        rounds = sum(self._rounds(case) for case in cases)
        with tqdm(total=rounds, unit="run", desc="measuring", dynamic_ncols=True) as bar:
            for case in cases:
                bar.set_postfix_str(case.name)
                with tempfile.TemporaryDirectory() as folder:
                    measure = self._starts if case.what == "start" else self._turns
                    rows = measure(case, folder, bar)
                self.results["rows"] += rows
                write_atomic(self.out_dir / RESULTS, (json.dumps(self.results, indent=1) + "\n").encode())
                yield case

    def _names(self, case):
        names = [name for name in self.implementations if name != PEER or case.what not in NOT_OF_PEER]
        return names + [COLD] if case.what == "start" and self.cold and "jittor" in names else names

    def _rounds(self, case):
        return len(self._names(case)) * (self.results["settings"]["repeats"] + (case.what != "start"))

    def _repeats(self, case, bar):
        """Yields before each round of a case; none begins after its seconds."""
        settings = self.results["settings"]
        began = time.perf_counter()
        for done in range(settings["repeats"]):
            if done and time.perf_counter() - began > settings["seconds"]:
                bar.total -= (settings["repeats"] - done) * len(self._names(case))
                return
            yield

    def _job(self, name, case):
        return {
            "implementation": name.removesuffix(", cold cache"),
            "peer": self.peer,
            "case": case and dataclasses.asdict(case),
            "threads": self.results["settings"]["threads"],
        }

    def _turns(self, case, folder, bar):
        """Rows of a case whose implementations take turns: A B machine, B machine A, ..."""
        groups = {}
        rows = {}
        try:
            for name in [*self._names(case), MACHINE]:
                of_machine = name == MACHINE
                groups[name] = Group(
                    self._job(name, None if of_machine else case), folder, 1 if of_machine else case.processes
                )
                rows[name] = self._row(case, name, groups[name].ready)
                if name != MACHINE:
                    bar.update()
            agreement = differences({name: groups[name].arrays for name in self._names(case)})
            order = list(groups)
            for _ in self._repeats(case, bar):
                for name in order:
                    add_repetition(rows[name], groups[name].repeat())
                    if name != MACHINE:
                        bar.update()
                order = order[1:] + order[:1]
        finally:
            for group in groups.values():
                group.stop()
        self.results["limits"][case.name] = rows.pop(MACHINE)["rates"]
        return [{**row, "differences": agreement.get(name, {})} for name, row in rows.items()]

    def _starts(self, case, folder, bar):
        """Rows of a case in which each repetition is a process of its own."""
        rows = {}
        for _ in self._repeats(case, bar):
            for name in self._names(case):
                if name == COLD and name in rows:
                    bar.update()  # takes minutes: once
                    continue
                with tempfile.TemporaryDirectory() as home:
                    began = time.perf_counter()
                    process = Process(self._job(name, case), folder, home if name == COLD else None)
                    try:
                        ready = process.answer()
                    finally:
                        process.stop()
                row = rows.setdefault(name, self._row(case, name, ready))
                add_repetition(
                    row,
                    {
                        "wall": time.perf_counter() - began,
                        "cpu": ready["cpu_so_far"],
                        "memory_mib": ready["memory_mib"],
                    },
                )
                bar.update()
        return list(rows.values())

    def _row(self, case, name, ready):
        self.results["versions"][name] = ready["versions"]
        return {
            "case": {"name": case.name, **dataclasses.asdict(case)},
            "implementation": name,
            "scale": ready["scale"],
            "first": ready["first"],
            "wall": [],
            "cpu": [],
            "memory_mib": 0,
            "rates": [],
        }


def add_repetition(row, answer):
    """Enter one repetition into a row."""
    row["wall"].append(answer["wall"])
    row["cpu"].append(answer["cpu"])
    row["memory_mib"] = max(row["memory_mib"], answer["memory_mib"])
    if answer.get("rates"):
        row["rates"].append(answer["rates"])


def differences(files):
    """Implementation -> what is compared -> its distance from the first implementation that has it, root mean
    square relative to that one's. files: implementation -> npz file. `UserError` where two compute something
    else."""
    loaded = {name: dict(np.load(path)) for name, path in files.items()}
    found = {}
    reference = {}
    for name in sorted(loaded, key=lambda name: name != PEER):  # the peer first, if there is one
        for key, array in loaded[name].items():
            expected = reference.setdefault(key, array).astype(np.float64)
            distance = float(np.sqrt(np.mean((array - expected) ** 2) / np.mean(expected**2)))
            if not distance < LARGEST_DIFFERENCE:
                raise UserError(
                    f"{name}: its {key} differs by {distance:.1e} from the other implementations' on the "
                    "same inputs and weights; a comparison of their speed would mean nothing"
                )
            found.setdefault(name, {})[key] = distance
    return found


def describe_machine():
    """What the machine says of itself."""
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}

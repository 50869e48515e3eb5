"""The measurements: one process per case and implementation; the implementations take turns in each round."""

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.implementations import MACHINE, PEER, largest_difference
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.devices import CPU
from guided_diffusion_core.system.files import make_writable_folder, write_atomic
from guided_diffusion_core.system.json_worker import WorkerFailed, WorkerProcess

RESULTS = "results.json"
COLD = "jittor, cold cache"
# Not measured for the original: start and loading need packages that this project does not install, and scaling
# compares an implementation only with itself.
NOT_OF_PEER = ("start", "loading", "scaling")


class Process:
    """The process of one implementation and case (`worker.py`).

    job:    see `worker.serve`, without scratch and arrays. folder: for its files.
    home:   a home folder of its own (`COLD`), or None.
    """

    def __init__(self, job, folder, home=None):
        name = job["implementation"]
        self.arrays = Path(folder) / f"{name}.npz"
        self.log = Path(folder) / f"{name}.log"
        job = {**job, "scratch": str(folder), "arrays": str(self.arrays)}
        environment = {"OMP_NUM_THREADS": str(job["threads"]), "OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"}
        if home:
            environment |= {"HOME": home, "JITTOR_HOME": home}
        self._worker = WorkerProcess(name, "benchmarks.worker", [json.dumps(job)], self.log, environment)

    def answer(self):
        """Return its next answer, a dict. Raises `UserError`, with the end of the log, if it failed."""
        try:
            return self._worker.answer()
        except WorkerFailed as error:
            text = f"{self._worker.name}: {error.reason}"
            if not error.user:  # the log is in a temporary folder
                text += "\n" + self.log.read_text(errors="replace")[-2000:]
            raise UserError(text) from error

    def begin(self):
        """Let it run one repetition; its next answer has the seconds."""
        self._worker.request("repeat")

    def stop(self):
        """End the process."""
        self._worker.stop()


class Group:
    """Processes of one implementation and case that run at the same time.

    job, folder: see `Process`. count: number of processes.
    """

    def __init__(self, job, folder, count):
        self._processes = []
        self.ready = None
        try:
            for index in range(count):
                process_folder = Path(folder) / str(index)
                process_folder.mkdir(exist_ok=True)
                self._processes.append(Process(job, process_folder))
                ready = self._processes[-1].answer()  # one after the other, because the first compiles for all
                self.ready = self.ready or ready
        except BaseException:
            self.stop()
            raise
        self.arrays = self._processes[0].arrays

    def repeat(self):
        """Let all processes run one repetition at the same time.

        Returns the seconds until the last one has finished, and the sums of processor seconds and memory.
        """
        for process in self._processes:
            process.begin()
        answers = [process.answer() for process in self._processes]
        return {
            "wall": max(answer["wall"] for answer in answers),
            "rates": answers[0]["rates"],
            "cpu": sum(answer["cpu"] for answer in answers),
            "memory_mib": sum(answer["memory_mib"] for answer in answers),
        }

    def stop(self):
        """End all processes."""
        for process in self._processes:
            process.stop()


class Benchmark:
    """A run of cases. Its results are written to a folder after each case.

    out_dir:         folder of `results.json`.
    names:           of implementations (`implementations.py`), `PEER` among them.
    peer:            folder of the original, or "".
    threads, device: of each process.
    repeats:         number of rounds.
    seconds:         after this time no further round of a case begins.
    cold:            measure Jittor's first start as well. resume: keep the results in the folder.
    """

    def __init__(self, out_dir, names, *, peer, threads, device, repeats, seconds, cold, resume):
        self.out_dir = Path(make_writable_folder(out_dir, "--out_dir"))
        self.implementations = names
        self.peer = peer
        self.cold = cold
        self.results = {
            "settings": {
                "threads": threads,
                "device": device,
                "repeats": repeats,
                "seconds": seconds,
                "implementations": names,
            },
            "machine": describe_machine(),
            "versions": {},
            "limits": {},
            "rows": [],
        }
        self._load_earlier(resume)

    def _load_earlier(self, resume):
        """Load the results of an earlier run. Raises `UserError` without `resume` or for other settings."""
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
        earlier["settings"].setdefault("device", CPU)  # results of older versions
        if earlier["settings"] != self.results["settings"]:
            raise found_expected(
                path,
                f"results measured with {earlier['settings']}",
                str(self.results["settings"]),
                "Give the same settings, or another --out_dir.",
            )
        self.results = earlier

    def run(self, cases):
        """Measure all cases that are not in the results yet; yield each one when it is done."""
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
        """Yield before each round of a case. No round begins after the allowed seconds, except the first."""
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
            "device": self.results["settings"]["device"],
        }

    def _turns(self, case, folder, bar):
        """Measure a case in which the implementations take turns (A B machine, B machine A, ...); return its rows."""
        groups = {}
        rows = {}
        try:
            for name in [*self._names(case), MACHINE]:
                if name == MACHINE:
                    groups[name] = Group(self._job(name, None), folder, 1)
                else:
                    groups[name] = Group(self._job(name, case), folder, case.processes)
                rows[name] = self._row(case, name, groups[name].ready)
                if name != MACHINE:
                    bar.update()
            files = {name: groups[name].arrays for name in self._names(case)}
            agreement = differences(files, self.results["settings"]["device"])
            order = list(groups)
            for _ in self._repeats(case, bar):
                for name in order:
                    add_repetition(rows[name], groups[name].repeat())
                    if name != MACHINE:
                        bar.update()
                order = order[1:] + order[:1]  # another one begins each round
        finally:
            for group in groups.values():
                group.stop()
        self.results["limits"][case.name] = rows.pop(MACHINE)["rates"]
        return [{**row, "differences": agreement.get(name, {})} for name, row in rows.items()]

    def _starts(self, case, folder, bar):
        """Measure a case in which each repetition starts a new process; return its rows."""
        rows = {}
        for _ in self._repeats(case, bar):
            for name in self._names(case):
                if name == COLD and name in rows:
                    bar.update()  # a cold start takes minutes, so it is measured once
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
    """Add one repetition to a row."""
    row["wall"].append(answer["wall"])
    row["cpu"].append(answer["cpu"])
    row["memory_mib"] = max(row["memory_mib"], answer["memory_mib"])
    if answer.get("rates"):
        row["rates"].append(answer["rates"])


def differences(files, device=CPU):
    """Compare the outputs of implementations: return implementation -> output -> distance.

    The distance is the root mean square of the difference from the first implementation with that output,
    relative to its root mean square.
    files: implementation -> npz file. device: on which they computed.
    Raises `UserError` if two of them compute different things.
    """
    loaded = {name: dict(np.load(path)) for name, path in files.items()}
    found = {}
    reference = {}
    for name in sorted(loaded, key=lambda name: name != PEER):  # the peer first, if there is one
        for key, array in loaded[name].items():
            source, values = reference.setdefault(key, (name, array))
            expected = values.astype(np.float64)
            distance = float(np.sqrt(np.mean((array - expected) ** 2) / np.mean(expected**2)))
            if not distance < max(largest_difference(source, device), largest_difference(name, device)):
                raise UserError(
                    f"{name}: its {key} differs by {distance:.1e} from the other implementations' on the "
                    "same inputs and weights; a comparison of their speed would mean nothing"
                )
            found.setdefault(name, {})[key] = distance
    return found


def describe_machine():
    """Return processor, cores and load of this machine."""
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}

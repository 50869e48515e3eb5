"""Test of the harness: it has to find and name every planted fault, and pass every harmless control.

One backend gets the faults; the other one is the reference. A fault goes up the ladder of cases until one
diverges. If the layers of that case can be run by themselves, they name the culprit. A control has to pass
the whole ladder in both precisions.
"""

import re
import sys
import tempfile
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tqdm import tqdm

from guided_diffusion_core.backends import COMPARED
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.files import write_atomic
from parity import run
from parity.compare import compare_case
from parity.dump import PLAIN
from parity.faults import CONTROLS, FAULTS
from parity.locate import LAYER_FAMILIES, locate, module_of

LADDER = (
    "weights/new",
    "table/linear",
    "forward/new",
    "loss/mse",
    "gradients/new",
    "training/new",
    "optimizer/adamw",
    "sampling/ancestral",
    "sampling/ddim",
    "sampling/dpm-solver",
    "masks/isic",
    "steps/new",
    "gradients/v1",
    "optimizer/restarts",
    "training/second-moment",
    "resume/new",
    "validation/new",
    "training/augmented",
)
GATE = "forward/new"
COLUMNS = ("fault", "what is wrong", "caught by", "named", "ratio")


@dataclass(frozen=True)
class Outcome:
    """The result for one fault or control.

    case, precision: those that caught it, "" if none did. rung: of the first entry that differs.
    site:  the name that the harness gives as the culprit. ratio: of that entry or layer.
    """

    fault: object
    case: str = ""
    precision: str = ""
    rung: str = ""
    site: str = ""
    ratio: float = 0.0

    @property
    def right(self):
        """True if a fault was caught and named, or if a control passed."""
        if not self.fault.site:
            return not self.case
        return bool(self.case) and names(self.site, self.fault.site)

    def cells(self):
        """Return the outcome as a row of the table, in the order of `COLUMNS`."""
        ratio = ""
        if self.case:
            caught = f"{self.case}, {self.rung}, {self.precision}"
            ratio = f"{self.ratio:.1e}" if self.ratio < float("inf") else "inf"
        elif self.fault.site:
            caught = "not caught"
        else:
            caught = "harmless: no alarm"
        site = f"`{self.site}`" if self.site else ""
        return (self.fault.name, self.fault.about, caught, site, ratio)


def names(site, expected):
    """Return True if a site is the expected one: a call of that module, or an entry or problem that matches."""
    return module_of(site) == expected or fnmatchcase(site, expected)


def select_faults(wanted, part):
    """Return faults and controls by name, or all of them; with the part "I/N", only every N-th from the I-th."""
    every = FAULTS + CONTROLS
    known = {fault.name for fault in every}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise found_expected(
            f"FAULT {unknown[0]!r}",
            "no fault of that name",
            f"one of {', '.join(sorted(known))}",
            "Correct it, or name none to plant all.",
        )
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise found_expected("--part", repr(part), "I/N with I from 1 to N", "Write for example 1/2.")
    chosen = [fault for fault in every if not wanted or fault.name in wanted]
    first = int(match[1]) - 1
    step = int(match[2])
    return chosen[first::step]


class Laboratory:
    """The records of the reference, and the port that gets the faults.

    port:   name of the backend that gets the faults. folder: temporary folder.
    kept:   folder that keeps the records of the reference, also from earlier runs; "" for a part of `folder`.
    Raises `UserError` if another backend recorded the earlier run.
    """

    def __init__(self, port, folder, kept=""):
        name = next(name for name in COMPARED if name != port)
        self.reference = run.Backend(name, run.SUITE, Path(kept or Path(folder) / "reference"))
        self.reference.resume()
        found = self.reference.dump
        if found and found.backend != name:
            raise found_expected(
                f"--reference {kept}", f"a dump of {found.backend}", f"one of {name}", "Name another folder."
            )
        self.port = run.Backend(port, run.SUITE, Path(folder) / "port")
        self.cases = {case.name: case for case in run.select_cases(run.load_suite(run.SUITE), LADDER)}

    def record_reference(self, jobs):
        """Record the reference's side of jobs that are not recorded yet.

        Raises `UserError` if the reference cannot run.
        """
        for job in jobs:
            try:
                self.reference.record(job)
            except run.WorkerFailed as error:
                raise UserError(str(error)) from error

    def examine(self, fault):
        """Run one fault or control up the ladder and return its `Outcome`."""
        for name, precision in self.rungs():
            self.record_reference(run.jobs_of(self.cases[name], (precision,), True, self.reference.folder))
            try:
                verdict = self._compare(run.Job(name, precision, PLAIN, fault.name))
            except run.WorkerFailed as error:
                return Outcome(fault, name, precision, "error", str(error), float("inf"))
            if verdict.problems or verdict.first:
                return self._outcome(fault, self.cases[name], verdict)
        return Outcome(fault)

    def rungs(self):
        """Return the (case, precision) pairs in the order in which a fault meets them.

        The ladder comes in float32, with the float64 gate for layers after its own case, then in float64.
        """
        rungs = [(name, "float32") for name in LADDER]
        rungs.insert(LADDER.index(GATE) + 1, (GATE, "float64"))
        for name in LADDER:
            if name != GATE and "float64" in self.cases[name].precisions:
                rungs.append((name, "float64"))
        return rungs

    def _compare(self, job):
        self.port.forget([job.key])
        self.port.record(job)
        return compare_case(self.reference.dump, self.port.dump, job.case, job.precision, job.variant, detail=False)

    def _outcome(self, fault, case, verdict):
        rung = verdict.first.rung if verdict.first else "structure"
        culprit = locate([verdict], [])
        if case.family in LAYER_FAMILIES:
            layers = []
            self.record_reference(run.layer_jobs(case, self.reference.folder, True))
            for job in run.layer_jobs(case, self.reference.folder, False, fault.name):
                layers.append(self._compare(job))
                culprit = locate([verdict], layers)
                if culprit.direction:  # float32 has named a layer; float64 is for errors of a container itself
                    break
        if verdict.problems and not culprit.direction:
            return Outcome(fault, case.name, verdict.precision, "structure", verdict.problems[0], float("inf"))
        return Outcome(fault, case.name, verdict.precision, rung, culprit.site, culprit.ratio)

    def stop(self):
        """Stop all processes."""
        self.reference.stop()
        self.port.stop()


def examine_all(faults, port, show=lambda outcome: None, reference=""):
    """Return the outcomes of faults and controls planted in a backend, in order; `show` is called with each."""
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        laboratory = Laboratory(port, folder, reference)
        outcomes = []
        try:
            tqdm.write(
                f"{len(faults)} faults in {port}, compared with {laboratory.reference.name}; a case of the "
                f"reference is recorded when a fault first needs it. Temporary dumps: {folder}",
                file=sys.stderr,
            )
            for fault in tqdm(faults, unit="fault", desc="planting", dynamic_ncols=True):
                outcomes.append(laboratory.examine(fault))
                show(outcomes[-1])
        finally:
            laboratory.stop()
    return outcomes


def run_mutations(wanted, port, part, table, reference=""):
    """Plant faults, print the outcome of each, and write the table to a file if one is named.

    reference: folder that keeps the other backend's records; "" for none.
    Returns 0 if every fault was found and named and every control passed, else 1.
    """
    faults = select_faults(wanted, part)
    began = time.perf_counter()
    outcomes = examine_all(faults, port, lambda outcome: tqdm.write(format_outcome(outcome)), reference)
    wrong = [outcome for outcome in outcomes if not outcome.right]
    planted = [outcome for outcome in outcomes if outcome.fault.site]
    n_found = sum(outcome.right for outcome in planted)
    n_alarms = sum(not outcome.fault.site for outcome in wrong)
    print(
        f"{n_found} of {len(planted)} faults found and named, {n_alarms} alarms on "
        f"{len(outcomes) - len(planted)} controls, {time.perf_counter() - began:.0f} s"
    )
    if table:
        write_atomic(table, format_table(outcomes, port).encode())
    return 1 if wrong or not outcomes else 0


def format_outcome(outcome):
    """Format an outcome as a line for the console."""
    name, _, caught, site, ratio = outcome.cells()
    word = "ok   " if outcome.right else "WRONG"
    text = f"{word} {name}: {caught}"
    if site:
        text += f"; named {site}, ratio {ratio}"
    return text if outcome.right else f"{text}; expected {outcome.fault.site or 'no alarm'}"


def format_table(outcomes, port):
    """Format all outcomes as a Markdown table."""
    planted = sum(bool(outcome.fault.site) for outcome in outcomes)
    lines = [
        "# Planted faults",
        "",
        f"Made by `python -m parity mutate --backend {port} --table parity/MUTATIONS.md`: {planted} faults planted in "
        f"the {port} backend one at a time, and {len(outcomes) - planted} harmless changes. Each goes up the ladder "
        "until a case differs; *caught by* is that case, the kind of tensor that differs "
        "first, and the precision. *Named* is the culprit: a layer that adds the error when it is run alone on "
        "the reference's inputs, or else the first entry that differs. *Ratio* is its error as a multiple of what the "
        "rule allows. `tests/parity/test_parity_mutations.py` keeps the table true.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for outcome in outcomes:
        cells = [cell.replace("|", "\\|") for cell in outcome.cells()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

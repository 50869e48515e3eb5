"""The report of a comparison: one HTML file, without scripts and without anything from the network."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from guided_diffusion_core.html_report import load_template
from guided_diffusion_core.system.files import write_atomic
from parity.capture import ROOT
from parity.dump import LAYERS
from parity.locate import BACKWARD_RUNGS, FORWARD_RUNGS
from parity.protocol import PRECISIONS
from parity.report_plots import error_curves, mask_differences
from parity.verdict import AGREE, DIVERGED, INCOMPLETE

WORDS = {AGREE: "Agree", DIVERGED: "Diverged", INCOMPLETE: "Incomplete"}
RUNGS = {"forward": FORWARD_RUNGS, "backward": BACKWARD_RUNGS}
COLUMNS = tuple((direction, precision) for direction in RUNGS for precision in PRECISIONS)
# Largest ratio of each colour in the tree, with its text; a ratio above 1 breaks the rule.
LEVELS = {0.1: "to 0.1", 0.32: "to 0.32", 1.0: "to 1", 10.0: "to 10", 1000.0: "to 1000", math.inf: "more"}
MANY = 5  # problems of a case that are shown; further ones are folded


def write_report(result, reference, candidate, path):
    """Write the report as one HTML file.

    result:               return value of `parity.result.result_tree`, or the same read from JSON.
    reference, candidate: `Dump`s, which contain the masks.
    Raises `UserError` if the file cannot be written.
    """
    names = (result["reference"]["backend"], result["candidate"]["backend"])
    verdicts = result["verdicts"]
    shown = {text for verdict in verdicts for text in verdict["missing"]}  # in the table of cases
    template = load_template(Path(__file__).parent, "report.html.j2", number=number, level=level)
    page = template.render(
        result=result,
        names=names,
        word=WORDS[result["state"]],
        sentence=_sentence(verdicts),
        culprit=_culprit(result),
        cases=[_case_row(verdict) for verdict in verdicts],
        many=MANY,
        problems=[text for text in result["problems"] if text not in shown],
        trees=_trees(verdicts),
        levels=list(LEVELS.values()),
        curves=error_curves(verdicts, names),
        masks=mask_differences(verdicts, reference, candidate),
        tables={title: _side_by_side(result, title.lower()) for title in ("Versions", "Flags")},
    )
    write_atomic(path, page.encode())


def number(value):
    """Format a ratio or an error as short text, None as a dash."""
    return "–" if value is None else f"{value:.3g}"


def level(ratio):
    """Return the index of a ratio's colour in `LEVELS`; NaN has the last one."""
    return next(index for index, end in enumerate(LEVELS) if _rank(ratio) <= end)


def _rank(ratio):
    return math.inf if math.isnan(ratio) else ratio


def _sentence(verdicts):
    """Say how much was compared, and the largest ratio."""
    cases = len({verdict["case"] for verdict in verdicts})
    plural = "" if cases == 1 else "s"
    tensors = sum(len(verdict["rows"]) for verdict in verdicts)
    sentence = f"{cases} case{plural}, {tensors:,} tensors compared"
    ratios = [verdict["worst"]["ratio"] for verdict in verdicts if verdict["worst"]]
    if ratios:
        sentence += f"; largest ratio {number(max(ratios, key=_rank))}, the rule allows 1"
    return f"{sentence}."


def _culprit(result):
    """Say what to look at first; "" if everything agrees."""
    if result["state"] == AGREE:
        return ""
    if result["state"] == DIVERGED and result["located"]:
        return result["located"][0]["text"]
    for verdict in result["verdicts"]:
        if verdict["state"] == result["state"]:
            if verdict["missing"]:
                return verdict["missing"][0]
            found = [text for text in (_first(verdict), *verdict["problems"]) if text]
            return f"{verdict['case']} in {verdict['precision']}: {found[0]}"
    return next(iter(result["problems"] + result["stale"]), "")


def _first(verdict):
    """Describe the first row that breaks the rule; "" if none does."""
    row = verdict["first"]
    if not row:
        return ""
    text = f"{_place(row)}: ratio {number(row['ratio'])}"
    return f"{text}, {row['problem']}" if row["problem"] else text


def _place(row):
    return f"{row['rung']} {row['site']}"


def _case_row(verdict):
    """Return the cells of a verdict's row in the table of cases."""
    worst = verdict["worst"]
    return {
        "case": verdict["case"],
        "precision": verdict["precision"],
        "variant": verdict["variant"],
        "state": verdict["state"],
        "tensors": len(verdict["rows"]),
        "ratio": worst and worst["ratio"],
        "where": _place(worst) if worst else "–",
        "first": _first(verdict) or "–",
        "problems": verdict["missing"] + verdict["problems"],
    }


@dataclass
class Module:
    """A module in the tree.

    name:     dotted name. cells: (direction, precision) -> the row with the largest ratio.
    children: last part of the name -> `Module`, in the order of computation.
    """

    name: str
    cells: dict = field(default_factory=dict)
    children: dict = field(default_factory=dict)

    def at(self, name):
        """Return the descendant with a dotted name, and make it if it does not exist."""
        if name == ROOT:
            return self
        module = self
        for part in name.split("."):
            child_name = part if module.name == ROOT else f"{module.name}.{part}"
            module = module.children.setdefault(part, Module(child_name))
        return module

    def add(self, column, row):
        """Keep a row if it is the worst one of its column."""
        if column not in self.cells or _rank(row["ratio"]) > _rank(self.cells[column]["ratio"]):
            self.cells[column] = row

    def worst_inside(self, column):
        """Return the row of a column with the largest ratio among the module and its descendants, or None."""
        rows = [module.cells[column] for module in self.walk() if column in module.cells]
        return max(rows, key=lambda row: _rank(row["ratio"]), default=None)

    def walk(self):
        """Yield the module and all its descendants."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    @property
    def diverged(self):
        """True if a row of the module itself breaks the rule."""
        return any(not row["ratio"] <= 1 for row in self.cells.values())

    @property
    def open(self):
        """True if a descendant breaks the rule; the page then shows the descendants."""
        return any(module.diverged for child in self.children.values() for module in child.walk())


def _trees(verdicts):
    """Return the tree of every case whose layers were recorded.

    It shows the layers run by themselves, if that was done; otherwise the case as it ran.
    """
    cases = {}
    for verdict in verdicts:
        if any(row["rung"] == "output" for row in verdict["rows"]):
            cases.setdefault(verdict["case"], []).append(verdict)
    trees = []
    for case, found in cases.items():
        layers = [verdict for verdict in found if verdict["variant"] == LAYERS]
        trees.append(_tree(case, layers or found, by_layer=bool(layers)))
    return trees


def _tree(case, verdicts, by_layer):
    root = Module(ROOT)
    for verdict in verdicts:
        for row in verdict["rows"]:
            for direction, rungs in RUNGS.items():
                if row["rung"] in rungs:
                    module = root.at(_module_name(row["site"]))
                    module.add((direction, verdict["precision"]), row)
    modules = [module for module in root.walk() if module.cells]
    used = {column for module in modules for column in module.cells}
    return {
        "case": case,
        "by_layer": by_layer,
        "root": root,
        "modules": len(modules),
        "diverged": sum(module.diverged for module in modules),
        "columns": [column for column in COLUMNS if column in used],
    }


def _module_name(site):
    """Return the module of a site: a call ("hwm#0[1]", "out.0#0.weight") or a parameter ("out.0.weight")."""
    if "#" in site:
        return site.partition("#")[0]
    return site.rpartition(".")[0] or ROOT


def _side_by_side(result, kind):
    """Return rows (name, reference's value, candidate's value); kind: "versions" or "flags"."""
    reference = result["reference"][kind]
    candidate = result["candidate"][kind]
    return [(name, reference.get(name, "–"), candidate.get(name, "–")) for name in {**reference, **candidate}]

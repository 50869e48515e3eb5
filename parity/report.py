"""The report of a comparison: one HTML file that needs no network and no script."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from guided_diffusion_core.system.files import write_atomic
from parity.capture import ROOT
from parity.compare import AGREE, DIVERGED, INCOMPLETE
from parity.dump import LAYERS
from parity.locate import BACKWARD_RUNGS, FORWARD_RUNGS
from parity.protocol import PRECISIONS
from parity.report_plots import error_curves, mask_differences

WORDS = {AGREE: "Agree", DIVERGED: "Diverged", INCOMPLETE: "Incomplete"}
RUNGS = {"forward": FORWARD_RUNGS, "backward": BACKWARD_RUNGS}
COLUMNS = tuple((direction, precision) for direction in RUNGS for precision in PRECISIONS)
# Upper ends of the colours of the tree, with their text; above 1 a ratio breaks the rule.
LEVELS = {0.1: "to 0.1", 0.32: "to 0.32", 1.0: "to 1", 10.0: "to 10", 1000.0: "to 1000", math.inf: "more"}
MANY = 5  # problems of a case that are shown unfolded


def write_report(result, reference, candidate, path):
    """Write the report as one HTML file, at once and whole.

    result:               of `parity.result.result_tree`, as it is or read back from JSON.
    reference, candidate: `Dump`; the masks are read from them.
    Raises `UserError` if the file cannot be written.
    """
    names = (result["reference"]["backend"], result["candidate"]["backend"])
    verdicts = result["verdicts"]
    missing = {text for verdict in verdicts for text in verdict["missing"]}
    page = _template().render(
        result=result,
        names=names,
        word=WORDS[result["state"]],
        sentence=_sentence(verdicts),
        culprit=_culprit(result),
        cases=[_case_row(verdict) for verdict in verdicts],
        many=MANY,
        problems=[text for text in result["problems"] if text not in missing],  # below the cases already
        trees=_trees(verdicts),
        levels=list(LEVELS.values()),
        curves=error_curves(verdicts, names),
        masks=mask_differences(verdicts, reference, candidate),
        tables={title: _side_by_side(result, title.lower()) for title in ("Versions", "Flags")},
    )
    write_atomic(path, page.encode())


def _template():
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, level=level)
    return environment.get_template("report.html.j2")


def number(value):
    """A ratio or an error as short text; a dash for None."""
    return "–" if value is None else f"{value:.3g}"


def level(ratio):
    """Place of a ratio among `LEVELS`; NaN is beyond all of them."""
    return next(place for place, end in enumerate(LEVELS) if _rank(ratio) <= end)


def _rank(ratio):
    return math.inf if math.isnan(ratio) else ratio


def _sentence(verdicts):
    """How much was compared, and the largest ratio."""
    cases = len({verdict["case"] for verdict in verdicts})
    tensors = sum(len(verdict["rows"]) for verdict in verdicts)
    ratios = [verdict["worst"]["ratio"] for verdict in verdicts if verdict["worst"]]
    largest = f"; largest ratio {number(max(ratios, key=_rank))}, the rule allows 1" if ratios else ""
    return f"{cases} case{'' if cases == 1 else 's'}, {tensors:,} tensors compared{largest}."


def _culprit(result):
    """What to look at first, as text; "" if everything agrees."""
    if result["state"] == AGREE:
        return ""
    if result["state"] == DIVERGED and result["located"]:
        return result["located"][0]["text"]
    for verdict in result["verdicts"]:
        if verdict["state"] == result["state"]:
            found = [text for text in (_first(verdict), *verdict["problems"]) if text]
            return (verdict["missing"] or [f"{verdict['case']} in {verdict['precision']}: {found[0]}"])[0]
    return next(iter(result["problems"] + result["stale"]), "")


def _first(verdict):
    """The first row that breaks the rule, as text, or ""."""
    row = verdict["first"]
    if not row:
        return ""
    return f"{_place(row)}: ratio {number(row['ratio'])}" + (f", {row['problem']}" if row["problem"] else "")


def _place(row):
    return f"{row['rung']} {row['site']}"


def _case_row(verdict):
    """A verdict's line of the table."""
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

    name: dotted. cells: (direction, precision) -> the row with the largest ratio.
    children: last part of the name -> `Module`, in the order of computation.
    """

    name: str
    cells: dict = field(default_factory=dict)
    children: dict = field(default_factory=dict)

    def at(self, name):
        """The descendant of a name; made if it is not there."""
        module = self
        for part in [] if name == ROOT else name.split("."):
            inner = part if module.name == ROOT else f"{module.name}.{part}"
            module = module.children.setdefault(part, Module(inner))
        return module

    def add(self, column, row):
        """Keep a row if it is the worst of its column."""
        if column not in self.cells or _rank(row["ratio"]) > _rank(self.cells[column]["ratio"]):
            self.cells[column] = row

    def worst_inside(self, column):
        """The row of a column with the largest ratio among the descendants, or None."""
        rows = [module.cells[column] for module in self.walk() if column in module.cells]
        return max(rows, key=lambda row: _rank(row["ratio"]), default=None)

    def walk(self):
        """The module and its descendants."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    @property
    def diverged(self):
        """Whether a row of its own breaks the rule."""
        return any(not row["ratio"] <= 1 for row in self.cells.values())

    @property
    def open(self):
        """Whether a descendant breaks the rule."""
        return any(module.diverged for child in self.children.values() for module in child.walk())


def _trees(verdicts):
    """The tree of every case whose layers were recorded, from its layers alone if they were run."""
    cases = {}
    for verdict in verdicts:
        if any(row["rung"] == "output" for row in verdict["rows"]):
            cases.setdefault(verdict["case"], []).append(verdict)
    trees = []
    for case, found in cases.items():
        alone = [verdict for verdict in found if verdict["variant"] == LAYERS]
        trees.append(_tree(case, alone or found, bool(alone)))
    return trees


def _tree(case, verdicts, alone):
    root = Module(ROOT)
    for verdict in verdicts:
        for row in verdict["rows"]:
            for direction, rungs in RUNGS.items():
                if row["rung"] in rungs:
                    root.at(_module_name(row["site"])).add((direction, verdict["precision"]), row)
    modules = [module for module in root.walk() if module.cells]
    return {
        "case": case,
        "alone": alone,
        "root": root,
        "modules": len(modules),
        "diverged": sum(module.diverged for module in modules),
        "columns": [column for column in COLUMNS if any(column in module.cells for module in modules)],
    }


def _module_name(site):
    """The module of a site: of a call ("hwm#0[1]", "out.0#0.weight") or of a parameter ("out.0.weight")."""
    if "#" in site:
        return site.partition("#")[0]
    return site.rpartition(".")[0] or ROOT


def _side_by_side(result, kind):
    """Rows of (name, reference's value, candidate's value) of "versions" or "flags"."""
    sides = [result[side][kind] for side in ("reference", "candidate")]
    return [(name, *(side.get(name, "–") for side in sides)) for name in {**sides[0], **sides[1]}]

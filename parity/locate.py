"""Naming the culprit: the first layer whose added error breaks the rule.

Every layer of a case is seen twice: in the free-running comparison, where it inherits the error of
all before it, and alone, given the reference's inputs and output gradients (variant LAYERS), where
all error is its own.
"""

from dataclasses import dataclass

from parity.capture import ROOT

LAYER_FAMILIES = ("forward", "gradients")  # of which layers can be run alone
FORWARD_RUNGS = ("output", "buffer")
BACKWARD_RUNGS = ("gradient", "input gradient")


@dataclass(frozen=True)
class Culprit:
    """Where a case first goes wrong.

    site:      the layer, such as "hwm.td.0#0", or the entry or draw where no layer is to blame.
    direction: "forward", "backward" or "" where no layer is to blame.
    precision: in which it shows. ratio: of its added error to what is allowed.
    text:      a sentence.
    """

    case: str
    site: str
    direction: str
    precision: str
    ratio: float
    text: str


def locate(free, layers):
    """The `Culprit` of a case, or None if all its verdicts agree.

    free:   the case's free-running verdicts, one per precision. layers: those of its layers alone.
    """
    order = _completion_order(free)
    for direction, rungs in (("forward", FORWARD_RUNGS), ("backward", BACKWARD_RUNGS)):
        found = [
            (order[direction].get(_place(row.site), len(order[direction])), verdict.precision, row)
            for verdict in layers
            for row in verdict.rows
            if row.rung in rungs and row.diverged and _counts(row, verdict)
        ]
        if found:
            _, precision, row = min(found, key=lambda item: item[0])
            return _layer_culprit(free, direction, precision, row)
    return _entry_culprit(free)


def module_of(site):
    """Name of the module in a site: "hwm.td.0" of "hwm.td.0#0[1]"."""
    return site.partition("#")[0]


def _place(site):
    """The call in a site: "out.0#0" of "out.0#0.weight"."""
    name, _, rest = site.partition("#")
    return f"{name}#{rest.split('[')[0].split('.')[0]}"


def _completion_order(free):
    """Direction -> call -> its place in the order in which calls end, innermost first."""
    rows = free[0].rows if free else []
    order = {"forward": {}, "backward": {}}
    for row in rows:
        if row.rung == "output":
            order["forward"].setdefault(_place(row.site), len(order["forward"]))
        elif row.rung == "input gradient":
            order["backward"].setdefault(_place(row.site), len(order["backward"]))
    return order


def _counts(row, verdict):
    """In float32 only modules without children: inside others rounding may cross a kink, whose effect
    no layer adds. What a container does itself shows in float64."""
    if verdict.precision == "float64":
        return True
    name = module_of(row.site)
    prefix = "" if name == ROOT else f"{name}."
    return not any(other != name and other.startswith(prefix) for other in {module_of(r.site) for r in verdict.rows})


def _layer_culprit(free, direction, precision, row):
    first = next((verdict.first for verdict in free if verdict.first), None)
    text = (
        f"{_place(row.site)} adds the first error ({direction}, {row.rung} {row.site}, {precision}, "
        f"{row.ratio:.3g} times what is allowed)"
    )
    if first is not None and module_of(first.site) != module_of(row.site):
        text += f"; the first difference on the way is {first.rung} {first.site}"
    case = free[0].case if free else ""
    return Culprit(case, _place(row.site), direction, precision, row.ratio, text)


def _entry_culprit(free):
    """The first entry, or else the first problem, of free-running verdicts."""
    for verdict in free:
        if verdict.first:
            row = verdict.first
            return Culprit(
                verdict.case,
                f"{row.rung} {row.site}",
                "",
                verdict.precision,
                row.ratio,
                f"{row.rung} {row.site} is the first to differ ({verdict.precision}, "
                f"{row.problem or f'{row.ratio:.3g} times what is allowed'})",
            )
    for verdict in free:
        if verdict.problems:
            return Culprit(verdict.case, verdict.problems[0], "", verdict.precision, float("inf"), verdict.problems[0])
    return None

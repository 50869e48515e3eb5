"""Naming the culprit: the first layer that adds an error beyond the rule.

Every layer of a case is compared twice. In the plain run it inherits the errors of all earlier layers. By
itself, on the inputs and output gradients of the reference (variant LAYERS), all of its error is its own.
"""

from dataclasses import dataclass

from parity.capture import ROOT

LAYER_FAMILIES = ("forward", "gradients")  # their layers can be run by themselves
FORWARD_RUNGS = ("output", "buffer")
BACKWARD_RUNGS = ("gradient", "input gradient")


@dataclass(frozen=True)
class Culprit:
    """The place where a case first goes wrong.

    site:      the layer, such as "hwm.td.0#0"; an entry or a draw if no layer is to blame.
    direction: "forward", "backward" or "" if no layer is to blame.
    precision: of the run that shows it. ratio: its added error divided by the allowed error.
    text:      a sentence.
    """

    case: str
    site: str
    direction: str
    precision: str
    ratio: float
    text: str


def locate(plain, layers):
    """Return the `Culprit` of a case, or None if all its verdicts agree.

    plain:  verdicts of the case as it runs, one per precision. layers: verdicts of its layers by themselves.
    """
    order = _completion_order(plain)
    for direction, rungs in (("forward", FORWARD_RUNGS), ("backward", BACKWARD_RUNGS)):
        found = []  # (position of the call, precision, row) of each row to blame
        for verdict in layers:
            for row in verdict.rows:
                if row.rung in rungs and row.diverged and _counts(row, verdict):
                    position = order[direction].get(_call_of(row.site), len(order[direction]))
                    found.append((position, verdict.precision, row))
        if found:
            _, precision, row = min(found, key=lambda item: item[0])
            return _layer_culprit(plain, direction, precision, row)
    return _entry_culprit(plain)


def module_of(site):
    """Return the name of the module in a site: "hwm.td.0" for "hwm.td.0#0[1]"."""
    return site.partition("#")[0]


def _call_of(site):
    """Return the call in a site: "out.0#0" for "out.0#0.weight" or "out.0#0[1]"."""
    name, _, rest = site.partition("#")
    number = rest.split("[")[0].split(".")[0]
    return f"{name}#{number}"


def _completion_order(plain):
    """Return direction -> call -> its position in the order in which calls end, innermost first."""
    rows = plain[0].rows if plain else []
    order = {"forward": {}, "backward": {}}
    for row in rows:
        if row.rung == "output":
            order["forward"].setdefault(_call_of(row.site), len(order["forward"]))
        elif row.rung == "input gradient":
            order["backward"].setdefault(_call_of(row.site), len(order["backward"]))
    return order


def _counts(row, verdict):
    """Return True if a row can blame its module. In float32 only modules without children can be blamed.

    Inside a container, rounding may cross a kink (such as that of a ReLU): an error that none of its layers
    adds. An error of the container itself shows in float64.
    """
    if verdict.precision == "float64":
        return True
    name = module_of(row.site)
    prefix = "" if name == ROOT else f"{name}."
    modules = {module_of(other.site) for other in verdict.rows}
    return not any(module != name and module.startswith(prefix) for module in modules)


def _layer_culprit(plain, direction, precision, row):
    first = next((verdict.first for verdict in plain if verdict.first), None)
    call = _call_of(row.site)
    text = (
        f"{call} adds the first error ({direction}, {row.rung} {row.site}, {precision}, "
        f"{row.ratio:.3g} times what is allowed)"
    )
    if first is not None and module_of(first.site) != module_of(row.site):
        text += f"; the first difference on the way is {first.rung} {first.site}"
    case = plain[0].case if plain else ""
    return Culprit(case, call, direction, precision, row.ratio, text)


def _entry_culprit(plain):
    """Return the first entry that differs or, without one, the first problem of the verdicts; None if they agree."""
    for verdict in plain:
        row = verdict.first
        if row:
            site = f"{row.rung} {row.site}"
            reason = row.problem or f"{row.ratio:.3g} times what is allowed"
            text = f"{site} is the first to differ ({verdict.precision}, {reason})"
            return Culprit(verdict.case, site, "", verdict.precision, row.ratio, text)
    for verdict in plain:
        if verdict.problems:
            problem = verdict.problems[0]
            return Culprit(verdict.case, problem, "", verdict.precision, float("inf"), problem)
    return None

"""The targets for speed and memory, and how far a run has reached them."""

from dataclasses import dataclass

from benchmarks.run import COLD
from benchmarks.worker import PEER


@dataclass(frozen=True)
class Target:
    """A bound on one figure of an implementation.

    what:   key of `WHAT`. size: in pixels, or None for all sizes.
    figure: "time" or "memory" (ratio to the implementation `to`), "seconds", or "share" of the machine's limit.
    bound:  the largest allowed value; with `least`, the smallest.
    """

    what: str
    size: int | None
    implementation: str
    figure: str
    bound: float
    to: str = PEER
    least: bool = False


TARGETS = (
    *(Target("training", size, "pytorch", "time", 0.75) for size in (64, 256)),
    *(Target("training", size, "pytorch", "memory", 1.0) for size in (64, 256)),
    *(Target("training", size, "jittor", "time", 1.0) for size in (64, 256)),
    *(Target("training", size, "jittor", "memory", 1.2, to="pytorch") for size in (64, 256)),
    *(Target(what, size, "pytorch", "time", 0.7) for what in ("evaluation", "step") for size in (64, 256)),
    *(Target(what, size, "jittor", "time", 0.9) for what in ("evaluation", "step") for size in (64, 256)),
    Target("evaluation", 256, "pytorch", "share", 0.8, least=True),
    Target("evaluation", 256, "jittor", "share", 0.8, least=True),
    Target("cases", None, "pytorch", "time", 0.01),
    Target("cases", None, "jittor", "time", 0.01),
    Target("start", None, COLD, "seconds", 120),
    Target("start", None, "jittor", "seconds", 15),
)


def table(summary):
    """Format the section on targets from the rows of `report.summarise`; "" if no target was measured."""
    lines = []
    for target in TARGETS:
        for row in summary:
            case = row["case"]
            if (case.what, row["implementation"]) == (target.what, target.implementation) and (
                case.version == "new" and target.size in (None, case.size)
            ):
                found = _found(target, row, summary)
                if found is not None:
                    lines.append(_line(target, case, found))
    if not lines:
        return ""
    return (
        "## Targets\n\nTime as processor time; ratios to the implementation in brackets.\n\n"
        "| case | implementation | figure | target | found | reached |\n|---|---|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def _found(target, row, summary):
    """Return the figure of a row; None if the implementation to compare with was not measured."""
    if target.figure == "share":
        return row["share"]
    if target.figure == "seconds":
        return row["seconds"]
    others = [other for other in summary if other["case"] == row["case"] and other["implementation"] == target.to]
    if not others:
        return None
    if target.figure == "time" and target.to == PEER:
        return row["cpu_ratio"]
    return row["memory"] / others[0]["memory"]


def _line(target, case, found):
    """Format one target as a row of the table."""
    reached = found >= target.bound if target.least else found <= target.bound
    figure = f"{target.figure} ({target.to})" if target.figure in ("time", "memory") else target.figure
    side = "least" if target.least else "most"
    answer = "yes" if reached else "no"
    return (
        f"| {case.name} | {target.implementation} | {figure} | at {side} {target.bound:.3g} | {found:.3g} | {answer} |"
    )

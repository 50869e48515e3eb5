"""The targets for speed and memory, and how far a run has reached them."""

from dataclasses import dataclass

from benchmarks.implementations import PEER
from benchmarks.run import COLD
from guided_diffusion_core.system.devices import CPU, CUDA


@dataclass(frozen=True)
class Target:
    """A bound on one figure of an implementation.

    what:   key of `WHAT`. size: in pixels, or None for all sizes.
    figure: "time" or "memory" (ratio to the implementation `to`), "seconds", or "share" of the machine's limit.
    bound:  the largest allowed value; with `least`, the smallest.
    batch:  of the case, or 0 for all.
    device: "cpu" or "cuda".
    """

    what: str
    size: int | None
    implementation: str
    figure: str
    bound: float
    to: str = PEER
    least: bool = False
    batch: int = 0
    device: str = CPU


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
    Target("training", None, "pytorch bf16", "time", 1 / 2.5, device=CUDA),
    Target("cases", 256, "pytorch bf16", "time", 1 / 1000, device=CUDA),
    Target("evaluation", 256, "pytorch bf16", "share", 0.4, least=True, batch=16, device=CUDA),
)


def table(summary, device):
    """Format the section on targets from the rows of `report.summarise`; "" if no target was measured.

    device: that of the run, such as "cuda:0".
    """
    lines = []
    for target in TARGETS:
        if target.device != device.partition(":")[0]:
            continue
        for row in summary:
            case = row["case"]
            if (case.what, row["implementation"]) == (target.what, target.implementation) and (
                case.version == "new" and target.size in (None, case.size) and target.batch in (0, case.batch)
            ):
                found = _found(target, row, summary)
                if found is not None:
                    lines.append(_line(target, case, found))
    if not lines:
        return ""
    clock = "processor time" if device == CPU else "wall time"
    return (
        f"## Targets\n\nTime as {clock}; ratios to the implementation in brackets.\n\n"
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

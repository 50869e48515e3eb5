"""How the seconds of a case grow with each quantity: table and plot of the "scaling" cases."""

import math

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.cases import SCALING, SCALING_BASE

UNITS = {
    "size": "side in pixels",
    "width": "base width",
    "steps": "steps of the sampler",
    "members": "members of the ensemble",
    "batch": "cases in a batch",
    "processes": "processes",
}


def table(rows):
    """Markdown of `report.summarise`d rows: seconds for a case by quantity, value and implementation.

    The exponent is p of seconds ~ value^p between this value and the one before it.
    """
    names = sorted({row["implementation"] for row in rows})
    base = ", ".join(f"{UNITS[name]} {value}" for name, value in SCALING_BASE.items())
    heads = " | ".join(f"{name}: s per case | exponent | peak MiB" for name in names)
    lines = [
        f"What does not grow: {base}.",
        "",
        f"| what grows | value | {heads} |",
        "|---" * (2 + 3 * len(names)) + "|",
    ]
    for quantity in SCALING:
        courses = {name: _course(rows, name, quantity) for name in names}
        for index, value in enumerate(SCALING[quantity]):
            cells = [cell for name in names for cell in _cells(courses[name], index)]
            lines.append(f"| {UNITS[quantity]} | {value} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _course(rows, implementation, quantity):
    """The rows in which one quantity grows, in its order; None where one is missing."""
    found = {}
    for row in rows:
        settings = {name: getattr(row["case"], name) for name in SCALING_BASE}
        if row["implementation"] == implementation and settings == {**SCALING_BASE, quantity: settings[quantity]}:
            found[settings[quantity]] = row
    return [found.get(value) for value in SCALING[quantity]], SCALING[quantity]


def _cells(course, index):
    rows, values = course
    row = rows[index]
    before = rows[index - 1] if index else None
    if row is None:
        return ["", "", ""]
    exponent = ""
    if before:
        exponent = f"{math.log(row['seconds'] / before['seconds']) / math.log(values[index] / values[index - 1]):.2f}"
    return [f"{row['seconds']:.3g}", exponent, f"{row['memory']:.0f}"]


def plot(rows, path):
    """A picture of seconds for a case against each quantity, both logarithmic."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, quantity in zip(figure.subplots(2, math.ceil(len(SCALING) / 2), sharey=True).flat, SCALING):
        for name in sorted({row["implementation"] for row in rows}):
            course = [row for row in _course(rows, name, quantity)[0] if row]
            axes.plot(
                [getattr(row["case"], quantity) for row in course],
                [row["seconds"] for row in course],
                marker="o",
                label=name,
            )
        axes.set(xscale="log", yscale="log", xlabel=UNITS[quantity])
        axes.set_xticks(SCALING[quantity], [str(value) for value in SCALING[quantity]])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.supylabel("seconds for a case")
    figure.axes[0].legend()
    figure.savefig(path, dpi=100)

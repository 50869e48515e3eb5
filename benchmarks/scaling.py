"""The growth of the seconds of a case with each quantity: table and plot of the "scaling" cases."""

import math

from benchmarks.cases import SCALING, SCALING_BASE
from guided_diffusion_core.html_report import figure_bytes, make_figure
from guided_diffusion_core.system.files import write_atomic

UNITS = {
    "size": "side in pixels",
    "width": "base width",
    "steps": "steps of the sampler",
    "members": "members of the ensemble",
    "batch": "cases in a batch",
    "processes": "processes",
}


def table(rows):
    """Format rows of `report.summarise` as Markdown: seconds per case by quantity, value and implementation.

    The exponent is p in seconds ~ value^p, between a value and the previous one.
    """
    names = sorted({row["implementation"] for row in rows})
    base = ", ".join(f"{UNITS[name]} {value}" for name, value in SCALING_BASE.items())
    heads = " | ".join(f"{name}: s per case | exponent | peak MiB" for name in names)
    lines = [
        f"Quantities that do not grow: {base}.",
        "",
        f"| quantity | value | {heads} |",
        "|---" * (2 + 3 * len(names)) + "|",
    ]
    for quantity in SCALING:
        courses = {name: _course(rows, name, quantity) for name in names}
        for index, value in enumerate(SCALING[quantity]):
            cells = [UNITS[quantity], str(value)]
            for name in names:
                cells += _cells(courses[name], SCALING[quantity], index)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _course(rows, implementation, quantity):
    """Return the rows in which one quantity grows, in the order of its values; None for a missing one."""
    found = {}
    for row in rows:
        settings = {name: getattr(row["case"], name) for name in SCALING_BASE}
        if row["implementation"] == implementation and settings == {**SCALING_BASE, quantity: settings[quantity]}:
            found[settings[quantity]] = row
    return [found.get(value) for value in SCALING[quantity]]


def _cells(course, values, index):
    """Return seconds, exponent and memory of one row of a course."""
    row = course[index]
    previous = course[index - 1] if index else None
    if row is None:
        return ["", "", ""]
    exponent = ""
    if previous:
        slower = math.log(row["seconds"] / previous["seconds"])
        larger = math.log(values[index] / values[index - 1])
        exponent = f"{slower / larger:.2f}"
    return [f"{row['seconds']:.3g}", exponent, f"{row['memory']:.0f}"]


def plot(rows, path):
    """Plot the seconds per case against each quantity, with logarithmic axes."""
    figure = make_figure(12, 7)
    panels = figure.subplots(2, math.ceil(len(SCALING) / 2), sharey=True)
    for axes, quantity in zip(panels.flat, SCALING):
        for name in sorted({row["implementation"] for row in rows}):
            course = [row for row in _course(rows, name, quantity) if row]
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
    figure.supylabel("seconds per case")
    figure.axes[0].legend()
    write_atomic(path, figure_bytes(figure))

"""Plots of the evaluation, each the bytes of a PNG file."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def calibration_plot(calibration):
    """Reliability diagram and Dice against retained share; `calibration`: of the summary, by label."""
    figure, (left, right) = _figure(2)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for label, found in calibration.items():
        left.plot(
            [row["mean_probability"] for row in found["bins"]],
            [row["share_of_foreground"] for row in found["bins"]],
            "o-",
            label=label,
        )
        rows = [row for row in found["retained"] if row["Dice"] is not None]
        right.plot([100 * row["share"] for row in rows], [row["Dice"] for row in rows], "o-", label=label)
    left.set(xlabel="mean foreground probability of the bin", ylabel="share of foreground")
    right.set(xlabel="retained pixels, % (the most certain ones)", ylabel="mean Dice")
    right.invert_xaxis()
    left.legend()
    return _png(figure)


def bland_altman_plot(result, metric):
    """Difference against mean of a score, a panel per label; `result`: of `agreement.compare`."""
    figure, panels = _figure(len(result["labels"]))
    first, second = map(_plain, result["titles"])
    for panel, label in zip(panels, result["labels"]):
        found = result["scores"][label][metric]
        pairs = _pairs(found)
        panel.plot([(a + b) / 2 for a, b in pairs], [b - a for a, b in pairs], "o", alpha=0.7)
        for value, style in ((found["mean"], "-"), *((limit, "--") for limit in found["limits"] or ())):
            if value is not None:
                panel.axhline(value, linestyle=style, color="0.3", linewidth=1)
        panel.set(xlabel=f"mean {metric} of the two", ylabel=f"{metric}: {second} - {first}", title=label)
    return _png(figure)


def scatter_plot(result, metric):
    """One run's score against the other's, case by case, a panel per label."""
    figure, panels = _figure(len(result["labels"]))
    first, second = map(_plain, result["titles"])
    for panel, label in zip(panels, result["labels"]):
        pairs = _pairs(result["scores"][label][metric])
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        panel.plot([a for a, _ in pairs], [b for _, b in pairs], "o", alpha=0.7)
        panel.set(xlabel=f"{metric}, {first}", ylabel=f"{metric}, {second}", title=label)
        panel.set_aspect("equal")
    return _png(figure)


def _pairs(found):
    rows = [(row["first"], row["second"]) for row in found["per_case"]]
    return [row for row in rows if None not in row]


def _plain(title):
    """A title that matplotlib does not take for mathematics."""
    return title.replace("$", r"\$")


def _figure(panels):
    figure = Figure(figsize=(4.6 * panels, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()

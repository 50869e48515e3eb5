"""Plots of the evaluation, each as the bytes of a PNG file."""

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from guided_diffusion_core.html_report import escape_math, figure_bytes, make_figure
from guided_diffusion_core.results.display import COLOUR_MAP, MOST_UNCERTAIN


def calibration_plot(calibration):
    """Plot the reliability diagram and the Dice against the share of retained pixels.

    calibration: label -> `Calibration.summary()`.
    """
    figure, (left, right) = _panels(2)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)  # perfect calibration
    for label, found in calibration.items():
        predicted = [row["mean_probability"] for row in found["bins"]]
        observed = [row["share_of_foreground"] for row in found["bins"]]
        left.plot(predicted, observed, "o-", label=label)
        retained = [row for row in found["retained"] if row["Dice"] is not None]
        percent = [100 * row["share"] for row in retained]
        right.plot(percent, [row["Dice"] for row in retained], "o-", label=label)
    left.set(xlabel="mean foreground probability of the bin", ylabel="share of foreground")
    right.set(xlabel="retained pixels, % (the most certain ones)", ylabel="mean Dice")
    right.invert_xaxis()
    left.legend()
    return figure_bytes(figure)


def colour_bar():
    """Draw the colours of `display.heat_map` with their scale."""
    figure = make_figure(3.2, 0.6)
    scale = ScalarMappable(Normalize(0, MOST_UNCERTAIN), COLOUR_MAP)
    figure.colorbar(scale, cax=figure.subplots(), orientation="horizontal", label="uncertainty (standard deviation)")
    return figure_bytes(figure)


def bland_altman_plot(result, metric):
    """Plot the difference of a score against its mean over both runs, one panel per label.

    result: return value of `agreement.compare`.
    """
    figure, panels = _panels(len(result["labels"]))
    first, second = map(escape_math, result["titles"])
    for panel, label in zip(panels, result["labels"]):
        found = result["scores"][label][metric]
        pairs = _pairs(found)
        means = [(a + b) / 2 for a, b in pairs]
        differences = [b - a for a, b in pairs]
        panel.plot(means, differences, "o", alpha=0.7)
        if found["mean"] is not None:
            panel.axhline(found["mean"], linestyle="-", color="0.3", linewidth=1)
        for limit in found["limits"] or ():
            panel.axhline(limit, linestyle="--", color="0.3", linewidth=1)
        panel.set(xlabel=f"mean {metric} of the two", ylabel=f"{metric}: {second} - {first}", title=label)
    return figure_bytes(figure)


def scatter_plot(result, metric):
    """Plot one run's score against the other's, case by case, one panel per label.

    result: return value of `agreement.compare`.
    """
    figure, panels = _panels(len(result["labels"]))
    first, second = map(escape_math, result["titles"])
    for panel, label in zip(panels, result["labels"]):
        pairs = _pairs(result["scores"][label][metric])
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=1)  # equal scores
        panel.plot([a for a, _ in pairs], [b for _, b in pairs], "o", alpha=0.7)
        panel.set(xlabel=f"{metric}, {first}", ylabel=f"{metric}, {second}", title=label)
        panel.set_aspect("equal")
    return figure_bytes(figure)


def _pairs(found):
    """Return (first, second) of each case in which both runs have the score."""
    rows = [(row["first"], row["second"]) for row in found["per_case"]]
    return [row for row in rows if None not in row]


def _panels(count):
    figure = make_figure(4.6 * count, 3.8)
    return figure, figure.subplots(1, count, squeeze=False)[0]

"""Draw the fingerprint of a data set."""

import numpy as np

from guided_diffusion_core.html_report import figure_bytes, make_figure

BINS = 20


def fingerprint_png(check):
    """Return histograms of a `Check` as the bytes of a PNG file: sizes, spacings, intensities, foreground shares."""
    sizes = {}  # each is a dict of legend -> numbers
    spacings = {}
    shares = {}
    for name, found in check.fingerprint().items():
        sizes |= _by_axis(name, found["sizes"])
        spacings |= _by_axis(name, found["spacings"])
        for label, share in found["foreground_share"].items():  # shares of the pixels, from 0 to 1
            shares[f"{name}, {label}"] = 100 * np.array(share["cases"])
    figure = make_figure(11, 8)
    upper, lower = figure.subplots(2, 2)
    _draw_counts(upper[0], "sizes, pixels", sizes)
    _draw_counts(upper[1], "spacings, mm", spacings)
    _draw_densities(lower[0], "intensities, as densities", _sampled_intensities(check))
    _draw_counts(lower[1], "foreground, % of the pixels of a case", shares)
    return figure_bytes(figure)


def _by_axis(name, rows):
    """Return a dict of legend -> numbers along one axis, for the axes that all rows have."""
    axes = min(map(len, rows), default=0)
    return {f"{name}, axis {axis}": [row[axis] for row in rows] for axis in range(axes)}


def _sampled_intensities(check):
    """Return a dict of legend -> the sampled intensities of a channel."""
    samples = {}
    for name, results in check.examined.items():
        for result in results:
            if result.sample is not None:
                samples.setdefault(f"{name}, {result.file.part}", []).append(result.sample)
    return {legend: np.concatenate(found) for legend, found in samples.items()}


def _draw_counts(axes, title, series):
    if series:
        axes.hist(list(series.values()), BINS, label=list(series))
        axes.set_ylabel("cases")
    _label_axes(axes, title, series)


def _draw_densities(axes, title, series):
    if series:
        axes.hist(list(series.values()), 2 * BINS, histtype="step", density=True, label=list(series))
    _label_axes(axes, title, series)


def _label_axes(axes, title, series):
    axes.set_title(title)
    if series:
        axes.legend(fontsize="small")
    else:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)

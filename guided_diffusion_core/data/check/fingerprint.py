"""The picture of a data set's fingerprint."""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BINS = 20
TITLES = ("sizes, pixels", "spacings, mm", "intensities, as densities", "foreground, % of the pixels of a case")


def fingerprint_png(check):
    """Histograms of sizes, spacings, intensities and foreground shares of a `Check`: bytes of a PNG file."""
    sizes = {}
    spacings = {}
    shares = {}
    intensities = {}
    for name, found in check.fingerprint().items():
        for series, rows in ((sizes, found["sizes"]), (spacings, found["spacings"])):
            for axis in range(min(map(len, rows), default=0)):
                series[f"{name}, axis {axis}"] = [row[axis] for row in rows]
        for label, share in found["foreground_share"].items():
            shares[f"{name}, {label}"] = 100 * np.array(share["cases"])
    for name, results in check.examined.items():
        for result in results:
            if result.sample is not None:
                intensities.setdefault(f"{name}, {result.file.part}", []).append(result.sample)
    intensities = {label: np.concatenate(samples) for label, samples in intensities.items()}
    figure = Figure(figsize=(11, 8), layout="constrained")
    for axes, title, series in zip(figure.subplots(2, 2).flat, TITLES, (sizes, spacings, intensities, shares)):
        axes.set_title(title)
        if series is intensities:
            axes.hist(list(series.values()), 2 * BINS, histtype="step", density=True, label=list(series))
        elif series:
            axes.hist(list(series.values()), BINS, label=list(series))
            axes.set_ylabel("cases")
        if series:
            axes.legend(fontsize="small")
        else:
            axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()

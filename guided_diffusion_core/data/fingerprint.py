"""The picture of a data set's fingerprint."""
import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BINS = 30


def fingerprint_png(check):
    """Histograms of sizes, spacings, intensities and foreground shares of a `Check`: bytes of a PNG file."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    sizes, spacings, intensities, shares = figure.subplots(2, 2).flat
    for name, found in check.fingerprint().items():
        _histograms(sizes, found["sizes"], name)
        _histograms(spacings, found["spacings"], name)
        for label, share in found["foreground_share"].items():
            shares.hist(100 * np.array(share["cases"]), BINS, alpha=0.5, label=f"{name}, {label}")
    for name, results in check.examined.items():
        samples = {}
        for result in results:
            if result.sample is not None:
                samples.setdefault(result.file.part, []).append(result.sample)
        for channel, found in samples.items():
            intensities.hist(np.concatenate(found), 2 * BINS, histtype="step", density=True, label=f"{name}, {channel}")
    titles = {"sizes, pixels": sizes, "spacings, mm": spacings, "intensities": intensities,
              "foreground, % of the pixels of a case": shares}
    for title, axes in titles.items():
        axes.set_title(title)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
        else:
            axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
    for axes in (sizes, spacings, shares):
        axes.set_ylabel("cases")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _histograms(axes, rows, name):
    """One histogram for each axis of the cases' arrays."""
    lengths = {len(row) for row in rows}
    for axis in range(min(lengths, default=0)):
        axes.hist([row[axis] for row in rows], BINS, alpha=0.5, label=f"{name}, axis {axis}")

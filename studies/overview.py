"""One picture of many results: a row per case with image, truth, masks and uncertainty."""

import io
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from guided_diffusion_core.system.files import write_atomic

PANEL_INCHES = 1.8


@dataclass(frozen=True)
class OverviewRow:
    """One row of the overview; all pictures are (H, W) or as said, of one size within the row.

    label:       text at the left.
    image:       (C, H, W); three channels are shown as RGB in [0, 1], of others the last in grey.
    truth:       bool (H, W), or None for label-free data.
    masks:       dict of column title -> bool (H, W); the same titles in each row.
    uncertainty: (H, W) standard deviation in [0, 0.5].
    """

    label: str
    image: np.ndarray
    truth: np.ndarray
    masks: dict
    uncertainty: np.ndarray


def write_overview(path, rows):
    """Write the rows as one PNG picture, at once and whole.

    rows: non-empty list of `OverviewRow`. Raises `UserError` if the file cannot be written.
    """
    largest = max(float(row.uncertainty.max()) for row in rows)
    titles = ["image", "truth", *rows[0].masks, f"uncertainty, 0 to {largest:.2g}"]
    figure = Figure(figsize=(PANEL_INCHES * len(titles), PANEL_INCHES * len(rows) + 0.3), layout="compressed")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, row in zip(axes, rows):
        _draw_row(line, row, largest)
        line[0].set_ylabel(row.label, fontsize=7)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


def _draw_row(axes, row, largest):
    pictures = [_displayed(row.image), row.truth, *row.masks.values(), row.uncertainty]
    scales = [{"cmap": "gray"}] + [{"cmap": "gray", "vmin": 0, "vmax": 1}] * (len(pictures) - 2)
    scales.append({"cmap": "magma", "vmin": 0, "vmax": largest or 1})
    for axis, picture, scale in zip(axes, pictures, scales):
        axis.set_xticks([])
        axis.set_yticks([])
        if picture is None:
            axis.set_frame_on(False)
        else:
            axis.imshow(picture, interpolation="nearest", **scale)


def _displayed(image):
    """(3, H, W) -> (H, W, 3) clipped to [0, 1]; of other channel numbers the last, (H, W)."""
    image = np.asarray(image)
    return np.clip(image.transpose(1, 2, 0), 0, 1) if image.shape[0] == 3 else image[-1]

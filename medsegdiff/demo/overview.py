"""One picture of many results: a row per case with image, truth, masks and uncertainty."""

from dataclasses import dataclass

import numpy as np

from guided_diffusion_core.html_report import figure_bytes, make_figure
from guided_diffusion_core.results.display import as_picture
from guided_diffusion_core.system.files import write_atomic

PANEL_INCHES = 1.8


@dataclass(frozen=True)
class OverviewRow:
    """One row of the overview. All its pictures have one height and width.

    label:       text at the left.
    image:       (C, H, W); see `display.as_picture`.
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
    """Write the rows as one PNG picture.

    rows: non-empty list of `OverviewRow`. Raises `UserError` if the file cannot be written.
    """
    largest = max(float(row.uncertainty.max()) for row in rows)
    titles = ["image", "truth", *rows[0].masks, f"uncertainty, 0 to {largest:.2g}"]
    height = PANEL_INCHES * len(rows) + 0.3  # and a line for the titles
    figure = make_figure(PANEL_INCHES * len(titles), height, layout="compressed")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, row in zip(axes, rows):
        _draw_row(line, row, largest)
        line[0].set_ylabel(row.label, fontsize=7)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=9)
    write_atomic(path, figure_bytes(figure, dpi=150))


def _draw_row(axes, row, largest):
    pictures = [as_picture(row.image), row.truth, *row.masks.values(), row.uncertainty]
    scales = [{}] + [{"cmap": "gray", "vmin": 0, "vmax": 1}] * (len(pictures) - 2)
    scales.append({"cmap": "magma", "vmin": 0, "vmax": largest or 1})
    for axis, picture, scale in zip(axes, pictures, scales):
        axis.set_xticks([])
        axis.set_yticks([])
        if picture is None:
            axis.set_frame_on(False)
        else:
            axis.imshow(picture, interpolation="nearest", **scale)

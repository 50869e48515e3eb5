"""The reports as HTML: one file each, which needs no network and no script."""

from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from guided_diffusion_core.data.dataset import Truth
from guided_diffusion_core.data.formats.transforms import resize_nearest
from guided_diffusion_core.evaluation import plots, scores
from guided_diffusion_core.evaluation.agreement import mask_pairs
from guided_diffusion_core.evaluation.pictures import (
    COLOURS,
    INVENTED,
    MISSED,
    beside,
    case_picture,
    panel_shape,
    png_uri,
)
from guided_diffusion_core.evaluation.predictions import find_predictions, read_scored
from guided_diffusion_core.evaluation.statistics import mean
from guided_diffusion_core.system.files import write_atomic

BOTH = 200  # grey of what belongs to both masks


def write_report(path, summary, prediction_dir, truths, images, pictures):
    """Write the report of a scored run, the worst cases first.

    summary:  of `summary.evaluate` for `prediction_dir` and `truths`. images: `pictures.ImageSource`.
    pictures: how many cases are shown as pictures.
    Raises `UserError` if the file cannot be written.
    """
    labels = summary["labels"]
    rows = sorted(summary["metric_per_case"], key=_badness)
    metrics = [metric for metric in scores.SCORES if metric in summary["mean"][labels[0]]]
    by_name = {truth.name: truth for truth in truths}
    sources = find_predictions(prediction_dir, truths)
    shown = []
    for row in tqdm(rows[:pictures], unit="picture", desc="report", dynamic_ncols=True, leave=False, delay=2):
        truth = by_name[row["case"]]
        scored = read_scored(prediction_dir, truth, *sources[truth.name], summary["threshold"])
        uri, slice_index, largest = case_picture(images, truth, scored)
        shown.append(
            {"row": row, "uri": uri, "slice": slice_index, "uncertainty": None if largest is None else f"{largest:.2g}"}
        )
    page = _template("report.html.j2").render(
        summary=summary,
        labels=labels,
        metrics=metrics,
        rows=rows,
        shown=shown,
        found_images=images.found,
        calibration=_calibration_plot(summary["calibration"]),
        colours=dict(zip(labels, map(_css, COLOURS))),
        missed=_css(MISSED),
        invented=_css(INVENTED),
    )
    write_atomic(path, page.encode())


def _badness(row):
    """Sorts the worst case to the front and those without a score to the end."""
    dice = mean([found["Dice"] for found in row["metrics"].values()])
    return dice is None, dice or 0.0, row["case"]


def _calibration_plot(calibration):
    if not any(found["bins"] or found["retained"] for found in calibration.values()):
        return None
    return png_uri(plots.calibration_plot(calibration))


def write_comparison(out_dir, result, first, second, pictures):
    """Write `comparison.html` and the plots of it as PNG files, `bland_altman.png` and `scatter.png`.

    result: of `agreement.compare` for the `Run`s first and second. pictures: how many cases are shown.
    Raises `UserError` if a file cannot be written.
    """
    drawn = {
        "bland_altman.png": plots.bland_altman_plot(result, "Dice"),
        "scatter.png": plots.scatter_plot(result, "Dice"),
    }
    page = _template("comparison.html.j2").render(
        result=result,
        titles=result["titles"],
        shown=_differing(result, first, second, pictures),
        plots={name: png_uri(content) for name, content in drawn.items()},
        colours={"first": _css(MISSED), "second": _css(INVENTED)},
    )
    for name, content in {**drawn, "comparison.html": page.encode()}.items():
        write_atomic(Path(out_dir) / name, content)


def _differing(result, first, second, pictures):
    """Pictures of the least alike masks of each label, beside each other and their difference."""
    shown = []
    for place, label in enumerate(result["labels"]):
        rows = result["masks"][label][:pictures]
        slices = {row["case"]: row.get("slices") for row in first.summary["metric_per_case"]}
        truths = [Truth(row["case"], "", slices[row["case"]]) for row in rows]
        pairs = mask_pairs(first.folder, second.folder, truths, result["labels"])
        for row, truth, (_, one, other) in zip(rows, truths, pairs):
            one = one[place]
            other = other[place]
            number = None
            if truth.slices is not None:
                worst = int(np.argmax((one != other).sum(axis=(0, 1))))
                one = one[..., worst]
                other = other[..., worst]
                number = truth.slices[worst]
            shown.append(
                {
                    "label": label,
                    "row": row,
                    "slice": number,
                    "uri": png_uri(_difference(one, other, number is not None)),
                }
            )
    return shown


def _difference(first, second, turned):
    """Panels of two masks (H, W) and of their difference: first alone, second alone, both."""
    first, second = (resize_nearest(mask, panel_shape(mask.shape)) for mask in (first, second))
    panels = [np.repeat((mask * np.uint8(BOTH))[..., None], 3, axis=2) for mask in (first, second, first & second)]
    panels[2][first & ~second] = MISSED
    panels[2][second & ~first] = INVENTED
    return beside(panels, turned)


def _template(name):
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number)
    return environment.get_template(name)


def number(value, digits=4):
    """A score as text, a count without digits, a dash for None."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _css(colour):
    return "#" + "".join(f"{int(part):02x}" for part in colour)

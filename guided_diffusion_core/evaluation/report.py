"""The reports of scores as HTML: one file each, without scripts and without anything from the network."""

from pathlib import Path

import numpy as np

from guided_diffusion_core.data.formats.transforms import resize_nearest
from guided_diffusion_core.evaluation import plots, scores
from guided_diffusion_core.evaluation.agreement import mask_pairs, scored_truth
from guided_diffusion_core.evaluation.pictures import (
    INVENTED,
    MISSED,
    case_picture,
    join_panels,
    panel_shape,
    png_uri,
)
from guided_diffusion_core.evaluation.predictions import find_predictions, read_scored
from guided_diffusion_core.evaluation.statistics import mean
from guided_diffusion_core.html_report import data_uri, load_template
from guided_diffusion_core.results.display import COLOURS, PRACTICALLY_EQUAL
from guided_diffusion_core.system.files import write_atomic, write_text
from guided_diffusion_core.system.progress import progress

TEMPLATES = Path(__file__).parent
BOTH = 200  # grey of the pixels that belong to both masks


def write_report(path, summary, prediction_dir, truths, images, pictures):
    """Write the report of a scored run, the worst cases first.

    summary:  return value of `summary.evaluate` for `prediction_dir` and `truths`. images: `pictures.ImageSource`.
    pictures: number of cases to show as pictures.
    Raises `UserError` if the file cannot be written.
    """
    labels = summary["labels"]
    rows = sorted(summary["metric_per_case"], key=_badness)
    truth_by_case = {truth.name: truth for truth in truths}
    sources = find_predictions(prediction_dir, truths)
    shown = []
    colours = None  # those of the uncertainty, if there is one
    for row in progress(rows[:pictures], unit="picture", desc="report", leave=False, delay=2):
        truth = truth_by_case[row["case"]]
        kind, paths = sources[truth.name]
        scored = read_scored(prediction_dir, truth, kind, paths, summary["threshold"])
        uri, slice_index, largest = case_picture(images, truth, scored)
        if largest is not None:
            colours = data_uri(plots.colour_bar())
        shown.append({"row": row, "uri": uri, "slice": slice_index, "uncertainty": _in_words(largest)})
    page = load_template(TEMPLATES, "report.html.j2", number=number).render(
        summary=summary,
        labels=labels,
        metrics=[metric for metric in scores.SCORES if metric in summary["mean"][labels[0]]],
        rows=rows,
        shown=shown,
        found_images=images.found,
        calibration=_calibration_plot(summary["calibration"]),
        colours=dict(zip(labels, map(_css, COLOURS))),
        colour_bar=colours,
        missed=_css(MISSED),
        invented=_css(INVENTED),
    )
    write_text(path, page)


def _in_words(largest):
    """Say how uncertain a shown mask is; largest: uncertainty of its most uncertain pixel, or None."""
    if largest is None:
        return "no uncertainty was written"
    if largest < PRACTICALLY_EQUAL:
        return f"the members of the ensemble are practically equal (uncertainty below {PRACTICALLY_EQUAL:g} everywhere)"
    return f"uncertainty to {largest:.2g}"


def _badness(row):
    """Return a sorting key: the worst case comes first, cases without a score come last."""
    dice = mean([found["Dice"] for found in row["metrics"].values()])
    return dice is None, dice or 0.0, row["case"]


def _calibration_plot(calibration):
    if not any(found["bins"] or found["retained"] for found in calibration.values()):
        return None
    return data_uri(plots.calibration_plot(calibration))


def write_comparison(out_dir, result, first, second, pictures):
    """Write `comparison.html` and its plots as PNG files, `bland_altman.png` and `scatter.png`.

    result: return value of `agreement.compare` for the `Run`s first and second.
    pictures: number of cases to show as pictures, per label.
    Raises `UserError` if a file cannot be written.
    """
    drawn = {
        "bland_altman.png": plots.bland_altman_plot(result, "Dice"),
        "scatter.png": plots.scatter_plot(result, "Dice"),
    }
    page = load_template(TEMPLATES, "comparison.html.j2", number=number).render(
        result=result,
        titles=result["titles"],
        shown=_least_alike(result, first, second, pictures),
        plots={name: data_uri(content) for name, content in drawn.items()},
        colours={"first": _css(MISSED), "second": _css(INVENTED)},
    )
    for name, content in drawn.items():
        write_atomic(Path(out_dir) / name, content)
    write_text(Path(out_dir) / "comparison.html", page)


def _least_alike(result, first, second, pictures):
    """Draw the least alike masks of each label: dicts with label, row, slice and uri."""
    truth_by_case = {row["case"]: scored_truth(row) for row in first.summary["metric_per_case"]}
    shown = []
    for place, label in enumerate(result["labels"]):
        rows = result["masks"][label][:pictures]
        truths = [truth_by_case[row["case"]] for row in rows]
        pairs = mask_pairs(first.folder, second.folder, truths, result["labels"])
        for row, truth, (_, first_masks, second_masks) in zip(rows, truths, pairs):
            one = first_masks[place]
            other = second_masks[place]
            slice_index = None
            if truth.slices is not None:
                # a volume is shown by the slice with the most pixels that differ
                worst = int(np.argmax((one != other).sum(axis=(0, 1))))  # (X, Y, Z) -> (Z,)
                one = one[..., worst]
                other = other[..., worst]
                slice_index = truth.slices[worst]
            picture = _difference(one, other, rotate=slice_index is not None)
            shown.append({"label": label, "row": row, "slice": slice_index, "uri": png_uri(picture)})
    return shown


def _difference(first, second, rotate):
    """Draw two masks (H, W) and their difference as panels; a pixel of only one mask has that mask's colour."""
    shape = panel_shape(first.shape)
    first = resize_nearest(first, shape)
    second = resize_nearest(second, shape)
    difference = _grey(first & second)
    difference[first & ~second] = MISSED
    difference[second & ~first] = INVENTED
    return join_panels([_grey(first), _grey(second), difference], rotate)


def _grey(mask):
    """Show a mask (H, W) in grey on black: uint8 (H, W, 3)."""
    return np.repeat((mask * np.uint8(BOTH))[..., None], 3, axis=2)


def number(value, digits=4):
    """Format a score with digits, a count without, None as a dash."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _css(colour):
    """Format an RGB colour for a style sheet, such as "#d55e00"."""
    return "#" + "".join(f"{int(part):02x}" for part in colour)

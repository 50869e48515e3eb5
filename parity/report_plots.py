"""Pictures of the parity report as data URIs: error curves, and masks that differ."""

import math
import re

import numpy as np
from matplotlib.ticker import MaxNLocator

from guided_diffusion_core.html_report import data_uri, escape_math, figure_bytes, make_figure
from parity.dump import PLAIN

# Relative errors outside this range are drawn at its ends.
FLOOR = 1e-18
CEILING = 1e3
STEP = re.compile(r", step (\d+)$")
SAMPLE = re.compile(r"solver\.step#(\d+)\.sample$")
OF_TRAINING = ("loss", "update", "average")
COLOURS = ("#1f4e9c", "#c2570c", "#2f7d32")
DPI = 110
MAX_SLICES = 4  # shown of a volume
PANEL_INCHES = 1.9


def error_curves(verdicts, names):
    """Draw the error against depth, training step and sampling step.

    verdicts: list of `Verdict.to_dict()`. names: of the backends, (reference, candidate).
    Returns dicts with title, note, alt (the picture as text) and uri.
    """
    pictures = []
    for family, title, axis, note, find_curves in KINDS:
        cases = {}  # case -> precision -> curves
        for verdict in verdicts:
            if verdict["variant"] == PLAIN and verdict["case"].startswith(f"{family}/"):
                curves = find_curves(verdict["rows"])
                if curves:
                    cases.setdefault(verdict["case"], {})[verdict["precision"]] = curves
        for case, panels in cases.items():
            pictures.append(
                {
                    "title": f"{title}: {case}",
                    "note": note,
                    "alt": _alt(axis, panels, names),
                    "uri": _draw_curves(panels, axis, names),
                }
            )
    return pictures


# Each finder returns label -> points (x, error, error of the reference itself); a single curve has the label "".


def _by_depth(rows):
    outputs = [row for row in rows if row["rung"] == "output"]
    return {"": [_point(call, [row]) for call, row in enumerate(outputs)]} if outputs else {}


def _by_step(rows):
    """Return rung -> the largest errors of each training step."""
    steps = {}  # rung -> step -> rows
    for row in rows:
        match = STEP.search(row["site"])
        if match and row["rung"] in OF_TRAINING:
            steps.setdefault(row["rung"], {}).setdefault(int(match[1]), []).append(row)
    curves = {}
    for rung, rows_of_step in steps.items():
        curves[rung] = [_point(step, rows_of_step[step]) for step in sorted(rows_of_step)]
    return curves


def _by_sample(rows):
    points = []
    for row in rows:
        match = SAMPLE.search(row["site"])
        if match and row["rung"] == "state":
            points.append(_point(int(match[1]), [row]))
    return {"": points} if points else {}


# Family, title, horizontal axis, note, and the function that finds the curves.
KINDS = (
    (
        "forward",
        "Error against depth",
        "call number",
        "Output of every module call, in the order of computation.",
        _by_depth,
    ),
    (
        "steps",
        "Error against training step",
        "training step",
        "Largest relative error among the losses, the updates and the averages of each step. Errors of about 1 and "
        "more in both belong to tensors whose exact value is zero.",
        _by_step,
    ),
    ("sampling", "Error against sampling step", "sampling step", "State after each step of the sampler.", _by_sample),
)


def _point(x, rows):
    """Return (x, error, error of the reference itself): the largest ones of the rows that can be drawn."""
    return x, _largest(row["error"] for row in rows), _largest(row["own"] for row in rows)


def _largest(errors):
    drawable = [_drawable(error) for error in errors]
    return max(drawable, key=lambda error: (not math.isnan(error), error))


def _drawable(error):
    """Limit an error to the range of the picture; 0 and non-finite errors become NaN, which leaves a gap."""
    return min(max(error, FLOOR), CEILING) if math.isfinite(error) and error > 0 else math.nan


def _alt(axis, panels, names):
    """Describe a picture of curves as text."""
    parts = []
    for precision, curves in panels.items():
        for label, points in curves.items():
            candidate = max((error for _, error, _ in points if not math.isnan(error)), default=0)
            reference = max((own for _, _, own in points if not math.isnan(own)), default=0)
            curve = f"{precision}, {label}" if label else precision
            parts.append(f"{curve}: largest {candidate:.2g} of {names[1]}, {reference:.2g} of {names[0]}")
    return f"Relative error against {axis}. {'; '.join(parts)}."


def _draw_curves(panels, axis_label, names):
    """Draw one panel per precision; the candidate's error is solid, the reference's own error dashed."""
    figure = make_figure(4.6 * len(panels), 2.9)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (precision, curves) in zip(axes, panels.items()):
        for colour, (label, points) in zip(COLOURS, curves.items()):
            steps, errors, own = zip(*points)
            few = len(points) < 30  # long curves have no markers
            axis.plot(
                steps,
                errors,
                marker="o" if few else "",
                color=colour,
                linewidth=1.2,
                markersize=4,
                label=escape_math(f"{label} {names[1]}".strip()),
            )
            axis.plot(
                steps,
                own,
                marker="s" if few else "",
                color=colour if label else COLOURS[1],
                linewidth=1,
                markersize=4,
                markerfacecolor="white",
                linestyle="--",
                label=escape_math(f"{label} {names[0]}, its own".strip()),
            )
        axis.set(title=precision, xlabel=axis_label, ylabel="relative error", yscale="log")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(True, linewidth=0.4, color="#cccccc")
        axis.legend(fontsize=7)
    return data_uri(figure_bytes(figure, "svg", DPI), "svg")


def mask_differences(verdicts, reference, candidate):
    """Compare the masks pixel by pixel, for each verdict on masks.

    verdicts: list of `Verdict.to_dict()`. reference, candidate: `Dump`.
    Returns dicts with title, text and pictures (dicts of caption, alt and uri).
    """
    return [
        _compared_masks(verdict["case"], verdict["precision"], reference, candidate)
        for verdict in verdicts
        if verdict["variant"] == PLAIN and verdict["case"].startswith("masks/")
    ]


def _compared_masks(case, precision, reference, candidate):
    title = f"{case}, {precision}"
    theirs = reference.load(case, precision, PLAIN)
    ours = candidate.load(case, precision, PLAIN)
    if theirs is None or ours is None:
        return {"title": title, "text": "Not compared: one of the records is missing.", "pictures": []}
    entries = theirs.by_key()
    pairs = _mask_pairs(theirs, ours)
    counts = {site: np.count_nonzero(first != second) for site, (first, second) in pairs.items()}
    differing = [site for site, number in counts.items() if number]
    pixels = sum(first.size for first, _ in pairs.values())
    plural = "" if len(pairs) == 1 else "s"
    masks = f"{len(pairs)} mask{plural}"
    if not differing:
        return {"title": title, "text": f"No pixel differs in {masks} of {pixels} pixels.", "pictures": []}
    pictures = []
    for site in differing:
        entry = entries.get(f"probability/{site}")
        probability = theirs.array(entry) if entry else None
        first, second = pairs[site]
        pictures.append(_mask_picture(site, first, second, probability, (reference.backend, candidate.backend)))
    text = f"{sum(counts.values())} of {pixels} pixels differ, in {len(differing)} of {masks}."
    return {"title": title, "text": text, "pictures": pictures}


def _mask_pairs(theirs, ours):
    """Return site -> (reference's mask, candidate's mask), for masks of one shape."""
    partners = ours.by_key()
    pairs = {}
    for key, entry in theirs.by_key().items():
        partner = partners.get(key)
        if entry.rung == "mask" and partner and partner.shape == entry.shape:
            pairs[entry.site] = (theirs.array(entry), ours.array(partner))
    return pairs


def _mask_picture(site, first, second, probability, names):
    """Draw both masks, their difference and the reference's probability, in the slices that differ most."""
    layers = [_slices(first), _slices(second), _slices(first != second)]  # (height, width, slices) each
    counts = np.count_nonzero(layers[2], axis=(0, 1))  # differing pixels of each slice
    n_differing = np.count_nonzero(counts)
    most_first = np.argsort(-counts, kind="stable")
    shown = sorted(most_first[: min(MAX_SLICES, n_differing)])
    if probability is not None:
        layers.append(_slices(probability))
    aspect = min(layers[0].shape[0] / layers[0].shape[1], 2)
    height = PANEL_INCHES * aspect * len(shown) + 0.3  # and a line for the titles
    figure = make_figure(PANEL_INCHES * len(layers), height, layout="compressed")
    axes = figure.subplots(len(shown), len(layers), squeeze=False)
    is_volume = first.ndim > 2
    for line, z in zip(axes, shown):
        planes = [layer[:, :, z] for layer in layers]
        planes[2] = _marked(planes[0], planes[1], planes[2])
        for axis, plane in zip(line, planes):
            axis.imshow(plane, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"slice {z}" if is_volume else "", fontsize=8)
    for axis, title in zip(axes[0], (*names, "difference (red)", f"probability, {names[0]}")):
        axis.set_title(escape_math(title), fontsize=8)
    caption = f"{site}: {counts.sum()} of {first.size} pixels differ"
    if is_volume:
        caption += f"; slices {', '.join(map(str, shown))} of {n_differing} that differ"
    return {
        "caption": f"{caption}.",
        "alt": f"Masks of {site} by {names[0]} and {names[1]}, their difference and the probability.",
        "uri": data_uri(figure_bytes(figure, "png", DPI)),
    }


def _slices(values):
    """Return an array of any shape as (height, width, slices); slices of a volume are rotated upright."""
    values = np.atleast_2d(values)
    planes = values.reshape(*values.shape[:2], -1)
    return np.rot90(planes) if values.ndim > 2 else planes


def _marked(first, second, different):
    """Draw the pixels of both masks light on grey, and those that differ red: RGB (H, W, 3) in [0, 1]."""
    picture = np.full((*different.shape, 3), 0.6)
    picture[(first != 0) & (second != 0)] = 0.95
    picture[different != 0] = (0.8, 0, 0)
    return picture

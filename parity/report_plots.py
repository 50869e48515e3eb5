"""Pictures of the parity report as data URIs: error curves, and masks that differ."""

import base64
import io
import math
import re

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from parity.dump import PLAIN

# relative errors beyond are drawn at the edge
FLOOR = 1e-18
CEILING = 1e3
STEP = re.compile(r", step (\d+)$")
SAMPLE = re.compile(r"diffusion\.(?:p|ddim)_sample#(\d+)\.sample$")
OF_TRAINING = ("loss", "update", "average")
COLOURS = ("#1f4e9c", "#c2570c", "#2f7d32")
MAX_SLICES = 4
PANEL_INCHES = 1.9


def error_curves(verdicts, names):
    """Pictures of the error against depth, training step and sampling step: dicts of title, note,
    alt (text of the picture) and uri.

    verdicts: list of `Verdict.to_dict`. names: (reference, candidate), the backends.
    """
    pictures = []
    for family, title, axis, note, curves in KINDS:
        cases = {}
        for verdict in verdicts:
            if verdict["variant"] == PLAIN and verdict["case"].startswith(f"{family}/"):
                found = curves(verdict["rows"])
                if found:
                    cases.setdefault(verdict["case"], {})[verdict["precision"]] = found
        pictures += [
            {
                "title": f"{title}: {case}",
                "note": note,
                "alt": _alt(axis, panels, names),
                "uri": _draw_curves(panels, axis, names),
            }
            for case, panels in cases.items()
        ]
    return pictures


def _by_depth(rows):
    outputs = [row for row in rows if row["rung"] == "output"]
    return {"": _points((call, [row]) for call, row in enumerate(outputs))} if outputs else {}


def _by_step(rows):
    """Rung -> the largest errors of each step."""
    curves = {}
    for row in rows:
        found = STEP.search(row["site"])
        if found and row["rung"] in OF_TRAINING:
            curves.setdefault(row["rung"], {}).setdefault(int(found[1]), []).append(row)
    return {rung: _points(sorted(steps.items())) for rung, steps in curves.items()}


def _by_sample(rows):
    steps = [(int(found[1]), [row]) for row in rows if row["rung"] == "state" and (found := SAMPLE.search(row["site"]))]
    return {"": _points(steps)} if steps else {}


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
        "Largest relative error among the losses, the updates and the averages of each step. Near 1 and above "
        "in both: what cancels to nothing in truth.",
        _by_step,
    ),
    ("sampling", "Error against sampling step", "sampling step", "State after each step of the sampler.", _by_sample),
)


def _points(groups):
    """(x, error, own) of each (x, rows): the largest drawable ones."""
    return [
        (
            x,
            *(
                max((_drawable(row[key]) for row in rows), key=lambda error: (error == error, error))
                for key in ("error", "own")
            ),
        )
        for x, rows in groups
    ]


def _drawable(error):
    """An error within the picture; NaN, which leaves a gap, where it is 0 or not finite."""
    return min(max(error, FLOOR), CEILING) if math.isfinite(error) and error > 0 else math.nan


def _alt(axis, panels, names):
    parts = []
    for precision, curves in panels.items():
        for label, points in curves.items():
            largest = [max((point[k] for point in points if point[k] == point[k]), default=0) for k in (2, 1)]
            parts.append(
                f"{precision}{label and f', {label}'}: largest {largest[1]:.2g} of {names[1]}, "
                f"{largest[0]:.2g} of {names[0]}"
            )
    return f"Relative error against {axis}. {'; '.join(parts)}."


def _draw_curves(panels, axis_label, names):
    """A panel for each precision; the candidate's error solid, the reference's own dashed."""
    figure = Figure(figsize=(4.6 * len(panels), 2.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (precision, curves) in zip(axes, panels.items()):
        for colour, (label, points) in zip(COLOURS, curves.items()):
            steps, errors, own = zip(*points)
            marks = ("o", "s") if len(points) < 30 else ("", "")
            axis.plot(
                steps,
                errors,
                marker=marks[0],
                color=colour,
                linewidth=1.2,
                markersize=4,
                label=_plain(f"{label} {names[1]}"),
            )
            axis.plot(
                steps,
                own,
                marker=marks[1],
                color=colour if label else COLOURS[1],
                linewidth=1,
                markersize=4,
                markerfacecolor="white",
                linestyle="--",
                label=_plain(f"{label} {names[0]}, its own"),
            )
        axis.set(title=precision, xlabel=axis_label, ylabel="relative error", yscale="log")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(True, linewidth=0.4, color="#cccccc")
        axis.legend(fontsize=7)
    return _data_uri(figure, "svg")


def _plain(text):
    """Text that matplotlib does not take for a formula."""
    return text.strip().replace("$", r"\$")


def _data_uri(figure, kind):
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    mime, left_out = {"svg": ("image/svg+xml", "Date"), "png": ("image/png", "Software")}[kind]
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format=kind, dpi=110, metadata={left_out: None})
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def mask_differences(verdicts, reference, candidate):
    """Which masks differ: a dict for each verdict on masks, with title, text and pictures (dicts of
    caption, alt and uri).

    verdicts: list of `Verdict.to_dict`. reference, candidate: `Dump`.
    """
    return [
        _compared_masks(verdict["case"], verdict["precision"], reference, candidate)
        for verdict in verdicts
        if verdict["variant"] == PLAIN and verdict["case"].startswith("masks/")
    ]


def _compared_masks(case, precision, reference, candidate):
    found = {"title": f"{case}, {precision}", "pictures": []}
    beside, ours = (dump.load(case, precision, PLAIN) for dump in (reference, candidate))
    if beside is None or ours is None:
        return {**found, "text": "Not compared: one of the records is missing."}
    entries = beside.by_key()
    partners = ours.by_key()
    pairs = {
        entry.site: (beside.array(entry), ours.array(partners[key]))
        for key, entry in entries.items()
        if entry.rung == "mask" and key in partners and partners[key].shape == entry.shape
    }
    counts = {site: np.count_nonzero(first != second) for site, (first, second) in pairs.items()}
    pixels = sum(first.size for first, _ in pairs.values())
    masks = f"{len(pairs)} mask{'' if len(pairs) == 1 else 's'}"
    if not any(counts.values()):
        return {**found, "text": f"No pixel differs in {masks} of {pixels} pixels."}
    for site in (site for site, count in counts.items() if count):
        entry = entries.get(f"probability/{site}")
        found["pictures"].append(
            _mask_picture(site, *pairs[site], entry and beside.array(entry), (reference.backend, candidate.backend))
        )
    found["text"] = f"{sum(counts.values())} of {pixels} pixels differ, in {len(found['pictures'])} of {masks}."
    return found


def _mask_picture(site, first, second, probability, names):
    """Both masks, their difference and the reference's probability, of the slices that differ most."""
    layers = [_slices(values) for values in (first, second, first != second)]
    counts = np.count_nonzero(layers[2], axis=(0, 1))
    shown = sorted(np.argsort(-counts, kind="stable")[: min(MAX_SLICES, np.count_nonzero(counts))])
    layers += [] if probability is None else [_slices(probability)]
    height = PANEL_INCHES * min(layers[0].shape[0] / layers[0].shape[1], 2) * len(shown)
    figure = Figure(figsize=(PANEL_INCHES * len(layers), height + 0.3), layout="compressed")
    axes = figure.subplots(len(shown), len(layers), squeeze=False)
    for line, z in zip(axes, shown):
        planes = [layer[:, :, z] for layer in layers]
        planes[2] = _marked(*planes[:3])
        for axis, plane in zip(line, planes):
            axis.imshow(plane, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"slice {z}" if first.ndim > 2 else "", fontsize=8)
    for axis, title in zip(axes[0], (*names, "difference (red)", f"probability, {names[0]}")):
        axis.set_title(_plain(title), fontsize=8)
    where = f"; slices {', '.join(map(str, shown))} of {np.count_nonzero(counts)} that differ"
    where *= first.ndim > 2
    return {
        "caption": f"{site}: {counts.sum()} of {first.size} pixels differ{where}.",
        "alt": f"Masks of {site} by {names[0]} and {names[1]}, their difference and the probability.",
        "uri": _data_uri(figure, "png"),
    }


def _slices(values):
    """(height, width, slices) of an array of any shape; a volume's slices upright."""
    values = np.atleast_2d(values)
    planes = values.reshape(*values.shape[:2], -1)
    return np.rot90(planes) if values.ndim > 2 else planes


def _marked(first, second, different):
    """RGB picture of the pixels that both masks hold, light on grey; where they differ, red."""
    picture = np.full((*different.shape, 3), 0.6)
    picture[(first != 0) & (second != 0)] = 0.95
    picture[different != 0] = (0.8, 0, 0)
    return picture

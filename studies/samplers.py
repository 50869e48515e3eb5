"""Write the record of the sampler study: tables and plots from the folders of the points.

The program writes only numbers. `README.md` in the record's folder holds the findings; it is written by hand and kept.
"""

import csv
import json
import shutil
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from guided_diffusion_core import checkpoints
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.evaluation import mask_agreement
from guided_diffusion_core.evaluation.metrics import count
from guided_diffusion_core.evaluation.predictions import selected
from guided_diffusion_core.results.outputs import MASK, find_output, read_output
from studies import brats
from studies.sampler_study import Point

TITLES = {
    "ancestral": "ancestral, learned variance",
    "ddim": "DDIM, eta 0",
    "ddim-eta1": "DDIM, eta 1",
    "dpm-solver": "DPM-Solver++",
    "ancestral-limited": "ancestral, share kept from 0 to 1",
}
OBJECTIVES = {"x0": "the network predicts x0", "epsilon": "the network predicts epsilon"}
STYLES = {"ancestral": "o-", "ddim": "s-", "dpm-solver": "^-", "ddim-eta1": "D-", "ancestral-limited": "+--"}
KEPT = ("config.json", "progress.jsonl", "progress.csv")
COURSES = (10, 100, 1000)  # evaluations of the courses that the record shows

TABLES = "tables.md"  # what the program writes
PAGE = "README.md"  # the findings, written by hand from the tables
TEMPLATE = """# Tables of the sampler study

Written by `studies/record_samplers.py`; [README.md](README.md) explains them.

- Networks: {trainings}.
- Sampled slices: {slices}; one sample each, all samplers from the same noise, in PyTorch.
- Dice is the mean over the volumes, at their own pixels.

## Dice

{tables}

## Learned variance

Pixels whose share is above 1. The share places the learned variance between the posterior's (0) and beta (1).
"asked" is the share at which the variance minimises the variational bound.

{probe}

## Courses

The share at the first evaluation (95% quantile over the pixels) and, of the last three evaluations, the noise ratio and
the Dice of the predicted mask. The noise ratio is the standard deviation of the difference between the network's input
and the true mask, over the schedule's.

{cause}

## Agreement of the frameworks

Pixels of the scored slices on which the masks of the two frameworks agree, from the same weights:

| point | agreement |
|---|---|
{shares}
"""


def write_record(work_dir, log_dir, points, truths):
    """Write `log_dir`: `tables.md`, `table.csv`, `report.json`, `courses.json`, the two plots and the
    trainings' configurations and logs. An earlier record is removed, except its hand-written `README.md`.

    work_dir: folder of the trainings and of `points/`. points: list of `Point`, all measured.
    truths: list of `Truth` of the sampled slices.
    """
    work_dir = Path(work_dir)
    log_dir = Path(log_dir)
    _remove_record(log_dir)
    networks = list(dict.fromkeys(point.network for point in points))
    for name in networks:
        (log_dir / name).mkdir(parents=True)
        for file in KEPT:
            text = (work_dir / name / file).read_text()
            (log_dir / name / file).write_text(text.replace(f"{work_dir}/", ""))
    steps = {name: checkpoints.load_all(checkpoints.find(work_dir / name).parent)[0] for name in networks}
    rows = [_row(work_dir / "points" / point.name, point, truths) for point in points]
    courses = {
        point.name: json.loads((work_dir / "points" / point.name / "course.json").read_text())
        for point in points
        if point.backend == "pytorch" and point.evaluations in COURSES
    }
    masks = {point: work_dir / "points" / point.name for point in points}
    agreement = {
        point.name: mask_agreement(masks[point], masks[_twin(point)], truths)
        for point in points
        if point.backend != "pytorch"
    }
    (log_dir / "report.json").write_text(json.dumps({"points": rows, "agreement": agreement}, indent=2) + "\n")
    probes = {name: json.loads((work_dir / "points" / name / "probe.json").read_text()) for name in networks}
    (log_dir / "probe.json").write_text(json.dumps(probes, indent=2) + "\n")
    thinned = {name: _thinned(course) for name, course in courses.items()}
    (log_dir / "courses.json").write_text(json.dumps(thinned) + "\n")
    _write_csv(log_dir / "table.csv", rows)
    _plot_dice(log_dir / "dice_vs_evaluations.png", networks, rows)
    _plot_courses(log_dir / "courses.png", networks, courses)
    (log_dir / TABLES).write_text(_tables(log_dir, steps, rows, courses, probes, agreement, truths))


def _remove_record(log_dir):
    """Remove everything in a record's folder except the hand-written page."""
    for path in log_dir.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != PAGE:
            path.unlink()


def _thinned(course):
    """Return about a hundred evaluations of a course, including the last ten."""
    return course[: -10 : max(1, len(course) // 90)] + course[-10:]


def _twin(point):
    """Return the point in PyTorch that a point in Jittor is compared with."""
    return Point(point.network, point.sampler, point.evaluations)


def _row(folder, point, truths):
    """Return one measured point and its Dice as JSON values."""
    dice = {}
    for truth in truths:
        expected = selected(read_truth_masks(truth), truth)
        dice[truth.name] = count(_written(folder, truth), expected).dice
    return {
        "network": point.network,
        "backend": point.backend,
        "sampler": point.sampler,
        "evaluations": point.evaluations,
        "dice": sum(dice.values()) / len(dice),
        "dice_per_case": dice,
    }


def _written(folder, truth):
    """Return the scored slices of a point's mask of one case, (1, X, Y, n)."""
    volume = read_output(find_output(folder, truth.name, MASK))  # (X, Y, Z)
    return selected(volume[None], truth)


def _write_csv(path, rows):
    names = ("network", "backend", "sampler", "evaluations", "dice")
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _curve(rows, network, sampler):
    """Return the curve of a sampler in PyTorch, a dict: evaluations -> Dice, in ascending order."""
    return {
        row["evaluations"]: row["dice"]
        for row in rows
        if (row["network"], row["sampler"], row["backend"]) == (network, sampler, "pytorch")
    }


def _plot_dice(path, networks, rows):
    figure = Figure(figsize=(5.5 * len(networks), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks):
        for sampler, title in TITLES.items():
            curve = _curve(rows, network, sampler)
            axes.plot(list(curve), list(curve.values()), STYLES[sampler], label=title)
        axes.set(
            xscale="log",
            ylim=(-0.02, 1),
            xlabel="network evaluations",
            ylabel="Dice, held-out slices",
            title=OBJECTIVES[network],
        )
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _plot_courses(path, networks, courses):
    """Plot noise and learned variance along the samplings, of the ancestral sampler and of DDIM."""
    figure = Figure(figsize=(5.5 * len(networks), 8), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, len(networks), squeeze=False)
    for above, below, network in zip(upper, lower, networks):
        for sampler in ("ancestral", "ddim"):
            for evaluations in COURSES:
                course = courses.get(Point(network, sampler, evaluations).name, [])
                label = f"{TITLES[sampler]}, {evaluations} evaluations"
                t = [1 + entry["t"] for entry in course]
                above.plot(t, [entry["noise_ratio"] for entry in course], label=label)
                if sampler == "ancestral":
                    for quantile, style in ((2, "-"), (1, "--")):
                        below.plot(
                            t,
                            [entry["share"][quantile] for entry in course],
                            style,
                            label=f"{label}, {(5, 50, 95)[quantile]}% quantile",
                        )
        above.set(
            xscale="log",
            yscale="log",
            xlabel="time step + 1",
            title=OBJECTIVES[network],
            ylabel="noise in the noised mask / the schedule's",
        )
        below.set(
            xscale="log", xlabel="time step + 1", ylabel="learned variance: share from the posterior's (0) to beta (1)"
        )
        below.axhspan(0, 1, alpha=0.1)
        above.legend(fontsize=8)
        below.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _dice_table(rows, network):
    """Return a Markdown table of the Dice: a row per sampler, a column per number of evaluations."""
    counts = sorted({row["evaluations"] for row in rows})
    lines = ["| evaluations | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    for sampler, title in TITLES.items():
        curve = _curve(rows, network, sampler)
        cells = (f"{curve[count]:.3f}" if count in curve else "" for count in counts)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cause_table(networks, courses):
    """Return a Markdown table of the last evaluations of each sampling, by network and sampler."""
    lines = ["| network | sampler | evaluations | share, 95% | noise ratio | Dice |", "|---" * 6 + "|"]
    for network in networks:
        for sampler, title in TITLES.items():
            for evaluations in COURSES:
                course = courses.get(Point(network, sampler, evaluations).name)
                if course:
                    share = f"{course[0]['share'][2]:.2f}"  # the 95% quantile
                    ratios = _last_three(course, "noise_ratio")
                    dice = _last_three(course, "dice_xstart")
                    cells = (network, title, str(evaluations), share, ratios, dice)
                    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _last_three(course, name):
    return ", ".join("not finite" if entry[name] is None else f"{entry[name]:.3g}" for entry in course[-3:])


def _probe_table(probes):
    lines = ["| network | t | pixels | error of x0 | share | asked |", "|---" * 6 + "|"]
    for network, rows in probes.items():
        for row in rows:
            cells = ("-" if row[name] is None else f"{row[name]:.2f}" for name in ("error", "share", "asked"))
            lines.append(f"| {network} | {row['t']} | {100 * row['pixels']:.1f}% | {' | '.join(cells)} |")
    return "\n".join(lines)


def _training(log_dir, name, steps):
    """Return a description of a training; steps: optimizer steps of the sampled checkpoint."""
    training = json.loads((log_dir / name / "config.json").read_text())["training"]
    asked = training["max_steps"]
    rate = training["lr_anneal_steps"]
    stopped = f", sampled from its checkpoint of step {steps}" if asked != steps else ""
    return f"`{name}`, {OBJECTIVES[name]}, {asked} optimizer steps (the learning rate falls over {rate}){stopped}"


def _tables(log_dir, steps, rows, courses, probes, agreement, truths):
    networks = list(probes)
    tables = "\n\n".join(f"### {OBJECTIVES[name]}\n\n{_dice_table(rows, name)}" for name in networks)
    shares = "\n".join(brats.agreement_row(name, cases) for name, cases in agreement.items())
    slices = ", ".join(f"{truth.name}: {', '.join(map(str, truth.slices))}" for truth in truths)
    return TEMPLATE.format(
        trainings="; ".join(_training(log_dir, name, steps[name]) for name in networks),
        slices=slices,
        tables=tables,
        probe=_probe_table(probes),
        cause=_cause_table(networks, courses),
        shares=shares,
    )

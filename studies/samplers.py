"""The record of the sampler study: tables and plots from the points' folders.

The program writes numbers only. `README.md` in the record's folder holds the findings, is written by hand and stays.
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
    """A course with about a hundred of its evaluations, the last ten whole."""
    return course[: -10 : max(1, len(course) // 90)] + course[-10:]


def _twin(point):
    return Point(point.network, point.sampler, point.evaluations)


def _row(folder, point, truths):
    """One measured point and its Dice as JSON values."""
    pairs = {truth.name: (selected(read_truth_masks(truth), truth), _written(folder, truth)) for truth in truths}
    dice = {name: count(masks, expected).dice for name, (expected, masks) in pairs.items()}
    return {
        "network": point.network,
        "backend": point.backend,
        "sampler": point.sampler,
        "evaluations": point.evaluations,
        "dice": sum(dice.values()) / len(dice),
        "dice_per_case": dice,
    }


def _written(folder, truth):
    """The scored slices of a point's mask of one case, (1, X, Y, n)."""
    return selected(read_output(find_output(folder, truth.name, MASK))[None], truth)


def _write_csv(path, rows):
    names = ("network", "backend", "sampler", "evaluations", "dice")
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _curve(rows, network, sampler):
    """Evaluations -> Dice of one curve, rising."""
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
    """What the network is given and answers on the way, ancestral against DDIM."""
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
    counts = sorted({row["evaluations"] for row in rows})
    lines = ["| evaluations | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    for sampler, title in TITLES.items():
        curve = _curve(rows, network, sampler)
        cells = (f"{curve[count]:.3f}" if count in curve else "" for count in counts)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cause_table(networks, courses):
    """The last evaluations of each sampling, by network and sampler."""
    lines = ["| network | sampler | evaluations | share, 95% | noise ratio | Dice |", "|---" * 6 + "|"]
    for network in networks:
        for sampler, title in TITLES.items():
            for evaluations in COURSES:
                course = courses.get(Point(network, sampler, evaluations).name)
                if course:
                    ratios, dice = (_last_three(course, name) for name in ("noise_ratio", "dice_xstart"))
                    cells = network, title, str(evaluations), f"{course[0]['share'][2]:.2f}", ratios, dice
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
    """A training in words; steps: those of the sampled checkpoint."""
    config = json.loads((log_dir / name / "config.json").read_text())
    asked, rate = (config["training"][key] for key in ("max_steps", "lr_anneal_steps"))
    stopped = f", sampled from its checkpoint of step {steps}" if asked != steps else ""
    return f"`{name}`, {OBJECTIVES[name]}, {asked} optimizer steps (the learning rate falls over {rate}){stopped}"


def _tables(log_dir, steps, rows, courses, probes, agreement, truths):
    networks = list(probes)
    tables = "\n\n".join(f"### {OBJECTIVES[name]}\n\n{_dice_table(rows, name)}" for name in networks)
    shares = "\n".join(
        f"| {name} | " + ", ".join(f"{case} {100 * share:.3f}%" for case, share in cases.items()) + " |"
        for name, cases in agreement.items()
    )
    slices = ", ".join(f"{truth.name}: {', '.join(map(str, truth.slices))}" for truth in truths)
    return TEMPLATE.format(
        trainings="; ".join(_training(log_dir, name, steps[name]) for name in networks),
        slices=slices,
        tables=tables,
        probe=_probe_table(probes),
        cause=_cause_table(networks, courses),
        shares=shares,
    )

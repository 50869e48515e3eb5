"""The record of the sampler study: table, plots and explanation from the points' folders."""

import csv
import json
import shutil
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import SamplingConfig
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

TEMPLATE = """# Dice against network evaluations: BraTS 2021, two volumes, 64 px

Written by `studies/record_samplers.py`. Two networks of the recipe of `logs/brats2021-64px` (preset
`fast`, width 32), one for each objective: {trainings}. Sampled are held-out slices ({slices}), one sample
each, all samplers from the same noise, in PyTorch; Dice is the mean over the volumes at their own 240x240
pixels. A few slices of two patients who were trained on: it compares samplers and says nothing about a new
patient. Differences of 0.01 mean nothing; those of epsilon, whose short training fails on whole slices, are
to be read in tenths.

`table.csv`: all points; `report.json`: the same with the Dice of each volume; `courses.json`,
`probe.json`: what the explanation below is drawn from; `x0/`, `epsilon/`: configuration and log of the
trainings.

![Dice against evaluations](dice_vs_evaluations.png)

{tables}

One evaluation is the same by every sampler: the mask predicted from pure noise.

## The default

`segmentation_sample.py` samples by DDIM with eta {default.eta:g} in {default.sample_steps} evaluations
where nothing else is said: the ancestral sampler with the posterior's variance in place of the learned
one. For x0 it is as good as any from two evaluations on. For epsilon it is the best at every number of
evaluations from 3 to 250: the fresh noise of each step repairs what the first steps have got wrong,
where an error of the predicted noise is an error of the mask 157 times as large; the deterministic
samplers carry it to the end. The number is where epsilon is best; this network's training is short, and a
longer one may bear more. `--preset fast` (x0) keeps 5 deterministic evaluations, `--preset original` the
original's sampling.

## Why the ancestral sampler spoils its last steps where they are few

The logarithm of the learned variance is share * log(beta) + (1 - share) * log(posterior variance), share
= (second channel + 1) / 2. Nothing keeps the share between 0 and 1, and a network that predicts x0 and is
trained shortly puts it far above:

1. The bound that trains the variance is least where the variance is the posterior's plus the square of
   the error that the step's mean makes. Near t = 0 the mean takes over half of x0's error, and the two
   variances that span the range are tiny: the network is right to ask for more than beta. At larger t the
   two are nearly equal in the trained process of 1000 steps, the bound hardly notices the share, and the
   network keeps it. A network that predicts epsilon is spared: near t = 0 its error of x0 is that of the
   noise, made small by the schedule, and its shares stay in the range. Measured at pixels whose share is
   above 1 ("asked": the share at which the variance minimises the bound):

{probe}

2. In fewer steps the range between the two is no longer small: the same share of 4 that means five times
   the noise at t = 1 of the whole process means millions of times at the last step but one of a sampling
   in 10. The network is given a mask with far more noise than the time step says. In all 1000 steps, on
   which the variance was trained, the same network's masks are not spoiled.
3. The last step adds no noise and its mean is the predicted mask alone: the sample is what the network
   makes of that input at t = 0, where it has learned to trust what it is given. The masks predicted on
   the way are good; only the last ones are not. The table and `courses.png` show the share at the first
   evaluation (95% quantile over the pixels) and, of the last three, the noise ratio (standard deviation
   of what the network's input holds beside the true mask, over the schedule's; at t = 0 an honest error
   of the prediction alone makes it several) and the Dice of the predicted mask at 64 px:

{cause}

The same x0 network, draws and steps with the share kept from 0 to 1, or with the posterior's variance (DDIM,
eta 1), give good masks in the first table: the learned variance alone does the harm.

## Jittor

Pixels of the scored slices on which the masks of the two frameworks agree, from the same weights:

| point | agreement |
|---|---|
{shares}
"""


def write_record(work_dir, log_dir, points, truths):
    """Write `log_dir`: `README.md`, `table.csv`, `report.json`, `courses.json`, the two plots and the
    trainings' configurations and logs.

    work_dir: folder of the trainings and of `points/`. points: list of `Point`, all measured.
    truths: list of `Truth` of the sampled slices.
    """
    work_dir = Path(work_dir)
    log_dir = Path(log_dir)
    shutil.rmtree(log_dir, ignore_errors=True)
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
    (log_dir / "README.md").write_text(_readme(log_dir, steps, rows, courses, probes, agreement, truths))


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


def _readme(log_dir, steps, rows, courses, probes, agreement, truths):
    networks = list(probes)
    tables = "\n\n".join(f"### {OBJECTIVES[name]}\n\n{_dice_table(rows, name)}" for name in networks)
    shares = "\n".join(
        f"| {name} | " + ", ".join(f"{case} {100 * share:.3f}%" for case, share in cases.items()) + " |"
        for name, cases in agreement.items()
    )
    slices = ", ".join(f"{truth.name}: {', '.join(map(str, truth.slices))}" for truth in truths)
    default = SamplingConfig()
    return TEMPLATE.format(
        trainings="; ".join(_training(log_dir, name, steps[name]) for name in networks),
        slices=slices,
        tables=tables,
        default=default,
        probe=_probe_table(probes),
        cause=_cause_table(networks, courses),
        shares=shares,
    )

"""Write the record of the BraTS run: numbers, tables and pictures from the files of the command lines."""

import json
import shutil
import statistics
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths
from guided_diffusion_core.data.formats.volumes import read_volume
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.evaluation import mask_agreement
from guided_diffusion_core.results.outputs import MASK, UNCERTAINTY, find_output, read_output
from medsegdiff.demo.overview import OverviewRow, write_overview

# Flags of every recorded network, and of how it was trained.
NETWORK = [
    "--image_size",
    "64",
    "--num_channels",
    "32",
    "--num_res_blocks",
    "2",
    "--num_heads",
    "1",
    "--learn_sigma",
    "True",
    "--use_scale_shift_norm",
    "False",
    "--attention_resolutions",
    "16",
]
OPTIMIZATION = ["--lr", "1e-3", "--batch_size", "8", "--log_interval", "10"]
TRAININGS = ("pytorch", "jittor", "pytorch-ulp", "pytorch-original", "pytorch-transfer")
AGREEMENTS = {
    "pytorch and jittor, trained from one seed": ("pytorch", "jittor"),
    "pytorch and pytorch, initial weights moved by one ulp": ("pytorch", "pytorch-ulp"),
    "weights of pytorch in both": ("pytorch", "pytorch-weights-in-jittor"),
    "weights of jittor in both": ("jittor", "jittor-weights-in-pytorch"),
}
CURVES = {"pytorch": "PyTorch, fast", "jittor": "Jittor, fast", "pytorch-original": "PyTorch, original"}
PICTURES = 10


def write_record(work_dir, log_dir, data_dir):
    """Write the record: copies of configurations, logs and scores, `report.json`, `README.md`, and two pictures.

    work_dir: folder of the trainings and of `predictions/`.
    log_dir:  folder of the record; an earlier record in it is removed.
    data_dir: folder of the volumes.
    """
    work_dir = Path(work_dir)
    log_dir = Path(log_dir)
    shutil.rmtree(log_dir, ignore_errors=True)
    _copy_texts(work_dir, log_dir)
    truths = list_truths(DataConfig(data_name="BRATS", data_dir=str(data_dir), slices="odd,tumour"))
    report = _report(work_dir, truths)
    (log_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (log_dir / "README.md").write_text(_readme(report))
    _plot_curves(work_dir, log_dir / "curves.png")
    write_overview(log_dir / "overview.png", _overview_rows(work_dir / "predictions", truths))


def _copy_texts(work_dir, log_dir):
    """Copy the text files of every run, without the path of the work folder in them."""
    for path in sorted(work_dir.rglob("*")):
        if path.name in ("config.json", "progress.jsonl", "progress.csv", "summary.json", "run_report.json"):
            target = log_dir / path.relative_to(work_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text().replace(f"{work_dir}/", ""))


def _lines(work_dir, name):
    return [json.loads(line) for line in (work_dir / name / "progress.jsonl").read_text().splitlines()]


def _scores(work_dir, name):
    return json.loads((work_dir / "predictions" / name / "summary.json").read_text())


def _report(work_dir, truths):
    """Return the numbers of all tables as JSON values."""
    predictions = work_dir / "predictions"
    return {
        "trainings": {name: _training(work_dir, name) for name in TRAININGS},
        "agreement": {
            title: mask_agreement(predictions / first, predictions / second, truths)
            for title, (first, second) in AGREEMENTS.items()
        },
        "validation": {name: _validation(work_dir, name) for name in CURVES},
    }


def _training(work_dir, name):
    """Return scores, time and memory of one training and of the sampling with its network."""
    lines = _lines(work_dir, name)
    scores = _scores(work_dir, name)
    sampled = json.loads((work_dir / "predictions" / name / "run_report.json").read_text())
    pairs = list(zip(lines, lines[1:]))
    # between two lines of the log; the median is robust against intervals in which a checkpoint was written
    seconds = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairs]
    dice = {row["case"]: label["Dice"] for row in scores["metric_per_case"] for label in row["metrics"].values()}
    return {
        "steps": lines[-1]["step"],
        "dice": scores["foreground_mean"]["Dice"],
        "iou": scores["foreground_mean"]["IoU"],
        "dice_per_case": dice,
        "seconds_per_step": statistics.median(seconds),
        "training_memory_mib": lines[-1]["memory_mib"],
        "seconds_per_case": sampled["sampler_seconds"] / sampled["cases"],
        "seconds_per_slice": sampled["sampler_seconds"] / sampled["images"],
        "sampling_memory_mib": sampled["memory_mib"],
    }


def _validation(work_dir, name):
    """Return a dict: step -> mean volume Dice of the checkpoint of this step."""
    return {
        int(folder.name.rsplit("-", 1)[1]): _scores(work_dir, folder.name)["foreground_mean"]["Dice"]
        for folder in sorted((work_dir / "predictions").glob(f"{name}-[0-9]*"))
    }


def agreement_row(title, cases):
    """Return a row of a Markdown table; cases: case -> share of the pixels on which two sets of masks agree."""
    shares = ", ".join(f"{case} {100 * share:.3f}%" for case, share in cases.items())
    return f"| {title} | {shares} |"


def _readme(report):
    """Return the text of the record's `README.md`."""
    rows = "\n".join(
        f"| {name} | {run['steps']} | {run['dice']:.4f} | {run['iou']:.4f} | {run['seconds_per_step']:.2f} | "
        f"{run['training_memory_mib']:.0f} | {run['seconds_per_case']:.1f} | {run['seconds_per_slice']:.2f} |"
        for name, run in report["trainings"].items()
    )
    shares = "\n".join(agreement_row(title, cases) for title, cases in report["agreement"].items())
    return f"""# BraTS 2021, two volumes, 64 px

Written by `studies/record_brats.py`; each folder holds what the command lines wrote (configuration,
JSON lines, scores), `report.json` the figures below. Trained on the even axial slices that hold
brain, scored on the odd ones that hold tumour, at the volumes' own 240x240 pixels: it shows
whether the job learns and whether the frameworks agree, and says nothing about a new patient.
`pytorch-transfer` is trained on the volume of `Train` and scored on that of `Test`.
Dice and IoU are means over the volumes, each over its scored slices together.

| run | steps | Dice | IoU | s per step | training MiB | s per case | s per slice |
|---|---|---|---|---|---|---|---|
{rows}

Pixels on which two sets of masks agree, over the scored slices of each volume:

| masks | agreement |
|---|---|
{shares}

`curves.png`: training loss, and the Dice of single samples by the checkpoints on the way;
`overview.png`: ten of the scored slices.
"""


def _plot_curves(work_dir, path):
    """Plot training loss and validation Dice against the optimizer step."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, dice = figure.subplots(1, 2)
    for name, label in CURVES.items():
        lines = _lines(work_dir, name)
        loss.plot([line["step"] for line in lines], [line["total"] for line in lines], label=label)
        validation = _validation(work_dir, name)
        dice.plot(list(validation), list(validation.values()), "o-", label=label)
    loss.set(xlabel="optimizer step", ylabel="total loss", yscale="log")
    dice.set(xlabel="optimizer step", ylabel="volume Dice, held-out slices, one sample", ylim=(0, 1))
    loss.legend()
    dice.legend()
    figure.savefig(path, dpi=110)


def _overview_rows(predictions, truths):
    """Return the rows of the overview: evenly spaced slices among the scored ones of both volumes."""
    rows = []
    for truth in truths:
        image = read_volume(truth.path.replace("_seg.", "_flair."))
        volumes = {"truth": read_truth_masks(truth)[0]}
        for name in ("pytorch", "jittor"):
            volumes[name] = read_output(find_output(predictions / name, truth.name, MASK))
        spread = read_output(find_output(predictions / "pytorch", truth.name, UNCERTAINTY))
        places = np.linspace(0, len(truth.slices) - 1, PICTURES // len(truths)).round().astype(int)
        for z in (truth.slices[place] for place in places):
            # as pictures: columns are x, rows are y from its highest index down
            plane = {name: np.rot90(volume[:, :, z]) for name, volume in volumes.items()}
            rows.append(
                OverviewRow(
                    label=f"{truth.name}\nslice {z}",
                    image=np.rot90(image[:, :, z])[None],
                    truth=plane["truth"],
                    masks={"PyTorch": plane["pytorch"], "Jittor": plane["jittor"]},
                    uncertainty=np.rot90(spread[:, :, z]),
                )
            )
    return rows

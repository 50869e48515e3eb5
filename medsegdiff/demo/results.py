"""The table and the picture that the demo ends in, and the folder that it works in."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guided_diffusion_core.data.formats.images import channel_values
from guided_diffusion_core.data.formats.rasters import read_raster
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.results.outputs import MASK, UNCERTAINTY, find_output, read_output
from guided_diffusion_core.system.files import make_writable_folder
from medsegdiff.demo.overview import OverviewRow

MARKER = ".medsegdiff-demo"  # a file in every folder that the demo has made
COLUMNS = ("backend", "Dice", "IoU", "training s", "sampling s", "total s", "s per step")


def prepare_folder(folder, parts):
    """Make the demo's folder, or remove what an earlier demo left in it; return its path.

    parts: names of the files and folders that the demo makes there; only these are removed, and
           only from a folder that holds `MARKER`.
    Raises `UserError` if the folder holds something and is not a demo's, or cannot be written.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise found_expected(
            f"--out_dir {str(folder)!r}",
            "a folder with files that are not the demo's",
            "a new or empty folder, or that of an earlier demo",
            "Choose another folder.",
        )
    make_writable_folder(folder, "--out_dir")
    (folder / MARKER).touch()
    for path in (folder / part for part in parts):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return folder


def minutes(seconds):
    """Return a duration as minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@dataclass(frozen=True)
class Result:
    """One backend's part of the demo: its mean scores and what they cost in seconds.

    training, sampling: of the whole commands. step: of an optimizer step, without the first ones.
    """

    dice: float
    iou: float
    training: float
    sampling: float
    step: float


def read_result(run_dir, masks_dir, training, sampling):
    """Return the `Result` of a training's folder and the folder of its scored masks.

    training, sampling: seconds that the two commands took.
    """
    mean = json.loads((Path(masks_dir) / "summary.json").read_text())["foreground_mean"]
    lines = [json.loads(line) for line in (Path(run_dir) / "progress.jsonl").read_text().splitlines()]
    step = (lines[-1]["seconds"] - lines[0]["seconds"]) / (lines[-1]["step"] - lines[0]["step"])
    return Result(mean["Dice"], mean["IoU"], training, sampling, step)


def format_table(results, agreement):
    """Return the demo's table as text.

    results:   dict backend -> `Result`. agreement: dict case -> share of pixels in [0, 1] on which
               the masks of two backends agree; empty for one backend.
    """
    width = max(map(len, (*results, COLUMNS[0])))
    lines = [f"{COLUMNS[0]:<{width}}" + "".join(f"{name:>12}" for name in COLUMNS[1:])]
    for backend, result in results.items():
        total = result.training + result.sampling
        lines.append(
            f"{backend:<{width}}{result.dice:12.4f}{result.iou:12.4f}{result.training:12.1f}"
            f"{result.sampling:12.1f}{total:12.1f}{result.step:12.2f}"
        )
    if not agreement:
        return "\n".join(lines)
    mean = np.mean(list(agreement.values()))
    lowest = min(agreement, key=agreement.get)
    lines.append(
        f"pixels on which the masks agree: {100 * mean:.2f}% on average, "
        f"{100 * agreement[lowest]:.2f}% at the lowest ({lowest})"
    )
    return "\n".join(lines)


def overview_rows(images, truths, folders):
    """Return an `OverviewRow` for each case; the uncertainty is the first backend's.

    images:  dict case -> path of its picture. truths: list of `Truth`.
    folders: dict title of the column -> folder of masks.
    """
    rows = []
    for truth in truths:
        masks = {title: read_output(find_output(folder, truth.name, MASK)) for title, folder in folders.items()}
        spread = find_output(next(iter(folders.values())), truth.name, UNCERTAINTY)
        picture = channel_values(read_raster(images[truth.name])).astype(np.float32) / 255  # (3, H, W)
        rows.append(OverviewRow(truth.name, picture, read_truth_masks(truth)[0], masks, read_output(spread)))
    return rows

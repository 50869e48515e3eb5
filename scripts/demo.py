"""Train, sample and score both backends on skin-lesion phantoms, from one seed, and compare them.

Every step is a public command, shown before it runs. All files go to --out_dir.
"""
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from guided_diffusion_core import cli, evaluation  # noqa: E402
from guided_diffusion_core.config import DataConfig  # noqa: E402
from guided_diffusion_core.data import list_truths  # noqa: E402
from guided_diffusion_core.data.phantoms import write_isic_phantoms  # noqa: E402
from guided_diffusion_core.errors import found_expected  # noqa: E402
from guided_diffusion_core.outputs import MASK, UNCERTAINTY, find_output, read_output  # noqa: E402
from guided_diffusion_core.overview import OverviewRow, write_overview  # noqa: E402

MARKER = ".medsegdiff-demo"  # a folder that holds it was made by this command and may be replaced
BACKENDS = {"pytorch": "PyTorch", "jittor": "Jittor"}
TRAIN_IMAGES, TEST_IMAGES = 48, 8
TRAINING = ["--preset", "fast", "--image_size", 64, "--num_channels", 32, "--num_heads", 1, "--learn_sigma", True,
            "--use_scale_shift_norm", False, "--attention_resolutions", 16, "--lr", 1e-3, "--batch_size", 8,
            "--max_steps", 60, "--log_interval", 20]


def main():
    parser = cli.CommandParser(__doc__)
    parser.add_argument("--out_dir", default="demo", metavar="FOLDER", help="folder for everything that is written")
    out_dir = Path(parser.parse_args().out_dir)
    prepare(out_dir)
    train_dir, test_dir = write_isic_phantoms(out_dir / "data", TRAIN_IMAGES, TEST_IMAGES, 96, seed=0)
    print(f"{TRAIN_IMAGES} training and {TEST_IMAGES} test phantoms in {out_dir / 'data'}")
    rows = {backend: run(backend, out_dir, train_dir, test_dir) for backend in BACKENDS}
    truths = list_truths(DataConfig(data_name="ISIC", data_dir=str(test_dir)))
    shares = list(evaluation.mask_agreement(*(out_dir / backend / "masks" for backend in BACKENDS), truths).values())
    picture = out_dir / "overview.png"
    write_overview(picture, overview_rows(out_dir, test_dir, truths))
    print(table(rows, shares))
    print(f"overview of the test images: {picture.resolve()}")


def prepare(out_dir):
    """Make the folder anew; one that this command did not make is left alone."""
    if out_dir.exists() and not (out_dir / MARKER).is_file() and any(out_dir.iterdir()):
        raise found_expected(f"--out_dir {out_dir}", "a folder with files of another origin", "a new folder",
                             "Choose another --out_dir.")
    shutil.rmtree(out_dir, ignore_errors=True)
    out_dir.mkdir(parents=True)
    (out_dir / MARKER).touch()


def run(backend, out_dir, train_dir, test_dir):
    """Train, sample and score one backend; returns its row of the table."""
    folder = out_dir / backend
    data = ["--data_name", "ISIC", "--data_dir"]
    trained = call("segmentation_train.py", "--backend", backend, *data, train_dir, "--out_dir", folder, *TRAINING)
    sampled = call("segmentation_sample.py", "--backend", backend, *data, test_dir, "--model_path", folder,
                   "--out_dir", folder / "masks", "--batch_size", TEST_IMAGES)
    call("segmentation_env.py", "--inp_pth", folder / "masks", *data, test_dir)
    mean = json.loads((folder / "masks" / "summary.json").read_text())["mean"]
    return {"Dice": mean["dice"], "IoU": mean["iou"], "training s": trained, "sampling s": sampled}


def call(script, *flags):
    """Run a public command; returns its seconds, or ends with its exit code, its message being above."""
    command = ["scripts/" + script, *map(str, flags)]
    print("\n$ python", *command, flush=True)
    began = time.perf_counter()
    code = subprocess.run([sys.executable, ROOT / "scripts" / script, *command[1:]]).returncode
    if code:
        sys.exit(code)
    return time.perf_counter() - began


def overview_rows(out_dir, test_dir, truths):
    """One row for each test image, at its own size."""
    rows = []
    for truth in truths:
        files = {backend: out_dir / backend / "masks" for backend in BACKENDS}
        masks = {BACKENDS[backend]: read_output(find_output(folder, truth.name, MASK))
                 for backend, folder in files.items()}
        uncertainty = read_output(find_output(files["pytorch"], truth.name, UNCERTAINTY))
        picture = next(Path(test_dir).rglob(f"{truth.name}.jpg"))
        image = np.asarray(Image.open(picture)).transpose(2, 0, 1) / 255
        rows.append(OverviewRow(truth.name, image, evaluation.read_truth(truth), masks, uncertainty))
    return rows


def table(rows, shares):
    """The last word: scores and seconds of each backend, and how far the two agree."""
    columns = list(next(iter(rows.values())))
    lines = ["", f"{'':<8}" + "".join(f"{column:>12}" for column in columns)]
    for backend, row in rows.items():
        cells = [f"{row[column]:>12.4f}" if column in ("Dice", "IoU") else f"{row[column]:>12.1f}" for column in columns]
        lines.append(f"{BACKENDS[backend]:<8}" + "".join(cells))
    lines.append(f"masks of the two agree on {100 * np.mean(shares):.2f}% of the pixels "
                 f"({100 * min(shares):.2f}% in the worst of {len(shares)} images)")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_command(main)

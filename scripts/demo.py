"""Train both backends on synthetic skin lesions from one seed, sample, score and compare them.

Works in --out_dir: pictures in data/, what each backend made in its folder, overview.png.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
sys.path.insert(0, str(SCRIPTS.parent))

from guided_diffusion_core import command_line, evaluation
from guided_diffusion_core.config import DataConfig  # noqa: E402
from guided_diffusion_core.data import list_truths  # noqa: E402
from guided_diffusion_core.data.layouts.isic import find_pairs  # noqa: E402
from guided_diffusion_core.data.phantoms import write_isic_phantoms  # noqa: E402
from studies import demo  # noqa: E402
from studies.overview import write_overview  # noqa: E402

TITLES = {"pytorch": "PyTorch", "jittor": "Jittor"}
PICTURES = {"train": 48, "test": 8, "size": 96}
TRAINING = [
    "--preset",
    "fast",
    "--image_size",
    "64",
    "--num_channels",
    "32",
    "--num_heads",
    "1",
    "--learn_sigma",
    "True",
    "--use_scale_shift_norm",
    "False",
    "--attention_resolutions",
    "16",
    "--lr",
    "1e-3",
    "--batch_size",
    "8",
    "--max_steps",
    "40",
    "--log_interval",
    "10",
]
# What each part takes on 2 cores, in seconds: the unit of the time that the headings say is left.
EXPECTED = {"train": 90, "sample": 15, "score": 5}


def main():
    parser = command_line.CommandParser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=Path("demo"),
        metavar="FOLDER",
        help="new folder, or that of an earlier demo, which is replaced (default: demo)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="INT", help="seed of the pictures and of both trainings (default: 0)"
    )
    args = parser.parse_args()
    out_dir = demo.prepare_folder(args.out_dir, ["data", *TITLES, "overview.png"])
    parts = Parts(len(TITLES))
    train_dir, test_dir = write_isic_phantoms(out_dir / "data", **PICTURES, seed=args.seed)
    print(f"{PICTURES['train']} pictures to train, {PICTURES['test']} to test: {out_dir / 'data'}", flush=True)
    results = {}
    for backend, title in TITLES.items():
        run_dir = out_dir / backend
        masks_dir = out_dir / backend / "masks"
        training = parts.run(
            "train",
            title,
            run_dir,
            [
                "--backend",
                backend,
                "--seed",
                args.seed,
                "--data_name",
                "ISIC",
                "--data_dir",
                train_dir,
                "--out_dir",
                run_dir,
                *TRAINING,
            ],
        )
        sampling = parts.run(
            "sample",
            title,
            run_dir,
            [
                "--backend",
                backend,
                "--seed",
                args.seed,
                "--model_path",
                run_dir,
                "--data_dir",
                test_dir,
                "--out_dir",
                masks_dir,
                "--batch_size",
                PICTURES["test"],
            ],
        )
        parts.run("score", title, run_dir, ["--inp_pth", masks_dir, "--data_name", "ISIC", "--data_dir", test_dir])
        results[title] = demo.read_result(run_dir, masks_dir, training, sampling)
    show(out_dir, test_dir, results)
    print(f"whole demo: {demo.minutes(parts.elapsed())} minutes")


def show(out_dir, test_dir, results):
    """Write the overview and print the table."""
    folders = {title: out_dir / backend / "masks" for backend, title in TITLES.items()}
    truths = list_truths(DataConfig(data_name="ISIC", data_dir=test_dir))
    images = {pair.name: pair.image for pair in find_pairs(test_dir, "Test")}
    write_overview(out_dir / "overview.png", demo.overview_rows(images, truths, folders))
    print("\n" + demo.format_table(results, evaluation.mask_agreement(*folders.values(), truths)))
    print("Seconds are those of the commands, start and Jittor's compilation of its operators included.")
    print(f"overview: {out_dir / 'overview.png'}")


class Parts:
    """Runs the public commands one after the other, each under a heading with the time left.

    backends: how often the parts of `EXPECTED` are run.
    """

    def __init__(self, backends):
        self.started = time.perf_counter()
        self.number = 0
        self.count = backends * len(EXPECTED)
        self.left = backends * sum(EXPECTED.values())
        self.done = 0

    def elapsed(self):
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def run(self, part, title, out_dir, flags):
        """Run `segmentation_{part}.py` and return its seconds.

        What it prints goes to `{part}.txt` in `out_dir`; progress and errors go to the console.
        Leaves with the command's exit code if that is not 0.
        """
        script = "segmentation_env.py" if part == "score" else f"segmentation_{part}.py"
        pace = self.elapsed() / self.done if self.done else 1
        self.number += 1
        print(
            f"\n[{self.number}/{self.count}] {part} with {title}; {demo.minutes(self.elapsed())} passed, "
            f"about {demo.minutes(self.left * pace)} left",
            flush=True,
        )
        out_dir.mkdir(exist_ok=True)
        command = [sys.executable, str(SCRIPTS / script), *map(str, flags)]
        began = time.perf_counter()
        with open(out_dir / f"{part}.txt", "w", encoding="utf-8") as output:
            code = subprocess.run(command, stdout=output).returncode
        if code:
            print(
                f"demo.py: {script} ended with exit code {code}; its message is above, the rest of its "
                f"output in {output.name}.",
                file=sys.stderr,
            )
            sys.exit(code if code > 0 else 128 - code)
        self.left -= EXPECTED[part]
        self.done += EXPECTED[part]
        return time.perf_counter() - began


if __name__ == "__main__":
    command_line.run_command(main)

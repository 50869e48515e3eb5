"""Record the BraTS 2021 run of logs/brats2021-64px: train, sample and score both backends.

Every network is trained, sampled and scored through the public command lines; what they write
lies in --work_dir, and a finished part is not done again. The record, without weights, is
written to --log_dir.
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guided_diffusion_core import command_line
from guided_diffusion_core.errors import UserError
from studies import brats

ROOT = Path(__file__).resolve().parents[1]

HELD_OUT = ["--slices", "odd,tumour"]
# Samples of the validation curve: one member each, since a curve needs many of them.
CURVE = {
    "fast": ["--num_ensemble", "1"],
    "original": ["--num_ensemble", "1", "--sampler", "ddim", "--sample_steps", "25"],
}
FULL = {"fast": [], "original": ["--sampler", "ddim", "--sample_steps", "25"]}


def main():
    args = parse()
    runs = {
        "pytorch": ("pytorch", "fast", args.data_dir, "even,brain"),
        "jittor": ("jittor", "fast", args.data_dir, "even,brain"),
        "pytorch-ulp": ("pytorch", "fast", args.data_dir, "even,brain"),
        "pytorch-original": ("pytorch", "original", args.data_dir, "even,brain"),
        "pytorch-transfer": ("pytorch", "fast", args.data_dir / "Train", "brain"),
    }
    for name, run in runs.items():
        train(args, name, *run)
        tested = (args.data_dir / "Test", ["--slices", "tumour"]) if "transfer" in name else (args.data_dir, HELD_OUT)
        score(args, args.work_dir / name, name, run[0], *tested, FULL[run[1]])
    for source, backend in (("pytorch", "jittor"), ("jittor", "pytorch")):
        score(args, args.work_dir / source, f"{source}-weights-in-{backend}", backend, args.data_dir, HELD_OUT, [])
    for name in ("pytorch", "jittor", "pytorch-original"):
        validate(args, name, *runs[name][:2])
    brats.write_record(args.work_dir, args.log_dir, args.data_dir)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with the volumes, in Train/ and Test/")
    parser.add_argument(
        "--work_dir", type=Path, default=Path("results/brats2021-64px"), help="folder for checkpoints and predictions"
    )
    parser.add_argument("--log_dir", type=Path, default=ROOT / "logs" / "brats2021-64px", help="folder for the record")
    parser.add_argument("--max_steps", type=int, default=300, help="optimizer steps of each training")
    return parser.parse_args()


def train(args, name, backend, preset, data_dir, slices):
    """Train one network, unless its last checkpoint is there."""
    out_dir = args.work_dir / name
    if (out_dir / "checkpoints" / f"step_{args.max_steps:06d}").is_dir():
        return
    flags = [
        "--backend",
        backend,
        "--preset",
        preset,
        "--data_name",
        "BRATS",
        "--data_dir",
        data_dir,
        "--slices",
        slices,
        "--out_dir",
        out_dir,
        "--max_steps",
        args.max_steps,
        "--lr_anneal_steps",
        args.max_steps,
        "--save_interval",
        50,
        *brats.NETWORK,
        *brats.OPTIMIZATION,
    ]
    call("train", flags, moved=name.endswith("-ulp"))


def score(args, model_path, name, backend, data_dir, slices, sampling):
    """Sample and score with a trained network; `name` is the folder of the predictions."""
    out_dir = args.work_dir / "predictions" / name
    data = ["--data_name", "BRATS", "--data_dir", data_dir, *slices]
    if not (out_dir / "summary.json").is_file():
        call(
            "sample",
            [
                "--backend",
                backend,
                "--model_path",
                model_path,
                "--out_dir",
                out_dir,
                "--batch_size",
                8,
                *data,
                *sampling,
            ],
        )
        call("score", ["--inp_pth", out_dir, *data])


def validate(args, name, backend, preset):
    """Score the checkpoints on the way, for the validation curve."""
    every = 100 if preset == "original" else 50
    for step in range(every, args.max_steps + 1, every):
        score(
            args,
            args.work_dir / name / "checkpoints" / f"step_{step:06d}",
            f"{name}-{step:06d}",
            backend,
            args.data_dir,
            HELD_OUT,
            CURVE[preset],
        )


def call(command, flags, moved=False):
    """Run a command of medsegdiff; `moved` trains from initial weights moved by one ulp."""
    line = [command, *map(str, flags)]
    print("+", "medsegdiff", *line, flush=True)
    code = subprocess.run([sys.executable, *(["-c", MOVED] if moved else ["-m", "medsegdiff"]), *line]).returncode
    if code:
        raise UserError(
            f"{command} ended with exit code {code}; its message is above. Fix it and start again: "
            "finished parts are kept."
        )


# `medsegdiff` with its initial weights moved; a run of this kind has no other use.
MOVED = """
from guided_diffusion_core.networks import registry
from guided_diffusion_core.networks.state import moved_by_one_ulp
from medsegdiff.__main__ import main
drawn = registry.initial_state
registry.initial_state = lambda settings, seed: moved_by_one_ulp(drawn(settings, seed))
main()
"""


if __name__ == "__main__":
    command_line.run_command(main)

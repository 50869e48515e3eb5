"""Record the BraTS 2021 run of logs/brats2021-64px: train, sample and score both backends.

Every network is trained, sampled and scored by the commands of medsegdiff. They write to --work_dir, and a part
that is finished there is not repeated. The record, without weights, is written to --log_dir.
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
# Flags of the samples for the validation curve, by preset: one member each, since a curve needs many samples.
CURVE = {
    "fast": ["--num_ensemble", "1"],
    "original": ["--num_ensemble", "1", "--sampler", "ddim", "--sample_steps", "25"],
}
# Flags of the samples for the tables, by preset.
FULL = {"fast": [], "original": ["--sampler", "ddim", "--sample_steps", "25"]}


def main():
    """Train, sample and score everything, and write the record."""
    args = parse()
    # name -> backend, preset, folder of the data, slices
    runs = {
        "pytorch": ("pytorch", "fast", args.data_dir, "even,brain"),
        "jittor": ("jittor", "fast", args.data_dir, "even,brain"),
        "pytorch-ulp": ("pytorch", "fast", args.data_dir, "even,brain"),
        "pytorch-original": ("pytorch", "original", args.data_dir, "even,brain"),
        "pytorch-transfer": ("pytorch", "fast", args.data_dir / "Train", "brain"),
    }
    for name, (backend, preset, data_dir, slices) in runs.items():
        train(args, name, backend, preset, data_dir, slices)
        if "transfer" in name:
            test_dir = args.data_dir / "Test"
            test_slices = ["--slices", "tumour"]
        else:
            test_dir = args.data_dir
            test_slices = HELD_OUT
        score(args, args.work_dir / name, name, backend, test_dir, test_slices, FULL[preset])
    # the weights of each framework in the other one
    for source, backend in (("pytorch", "jittor"), ("jittor", "pytorch")):
        score(args, args.work_dir / source, f"{source}-weights-in-{backend}", backend, args.data_dir, HELD_OUT, [])
    for name in ("pytorch", "jittor", "pytorch-original"):
        validate(args, name, *runs[name][:2])
    brats.write_record(args.work_dir, args.log_dir, args.data_dir)


def parse():
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with the volumes, in Train/ and Test/")
    parser.add_argument(
        "--work_dir", type=Path, default=Path("results/brats2021-64px"), help="folder for checkpoints and predictions"
    )
    parser.add_argument("--log_dir", type=Path, default=ROOT / "logs" / "brats2021-64px", help="folder for the record")
    parser.add_argument("--max_steps", type=int, default=300, help="optimizer steps of each training")
    return parser.parse_args()


def train(args, name, backend, preset, data_dir, slices):
    """Train one network, unless it has its last checkpoint already."""
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
        "--keep_checkpoints",
        0,
        "--overwrite",  # of an interrupted record
        *brats.NETWORK,
        *brats.OPTIMIZATION,
    ]
    call("train", flags, perturbed=name.endswith("-ulp"))


def score(args, model_path, name, backend, data_dir, slices, sampling):
    """Sample and score with a trained network, unless its scores exist; `name` is the folder of the predictions."""
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
    """Score the checkpoints of a training, for the validation curve."""
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


def call(command, flags, perturbed=False):
    """Run a command of medsegdiff; perturbed: start from initial weights that differ by one ulp."""
    line = [command, *map(str, flags)]
    print("+", "medsegdiff", *line, flush=True)
    program = ["-c", PERTURBED] if perturbed else ["-m", "medsegdiff"]
    code = subprocess.run([sys.executable, *program, *line]).returncode
    if code:
        raise UserError(
            f"{command} ended with exit code {code}; its message is above. Fix it and start again: "
            "finished parts are kept."
        )


# A program that runs medsegdiff with perturbed initial weights. No other run needs them, so that there is no flag.
PERTURBED = """
from guided_diffusion_core.networks import registry
from guided_diffusion_core.networks.state import moved_by_one_ulp
from medsegdiff.__main__ import main
drawn = registry.initial_state
registry.initial_state = lambda settings, seed: moved_by_one_ulp(drawn(settings, seed))
main()
"""


if __name__ == "__main__":
    command_line.run_command(main)

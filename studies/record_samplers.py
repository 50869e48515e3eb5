"""Record Dice against network evaluations for every sampler, in logs/samplers-brats2021-64px.

The program trains one network for each objective with medsegdiff train, samples a few held-out slices of
both volumes with every sampler at 1 to 1000 network evaluations, and scores them. It works in --work_dir,
and a part that is finished there is not repeated. The record, without weights, is written to --log_dir;
its README.md, which explains the tables, is written by hand.
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guided_diffusion_core import command_line
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths
from guided_diffusion_core.errors import UserError
from studies import brats, sampler_study, samplers
from studies.sampler_study import Point

ROOT = Path(__file__).resolve().parents[1]

# Name of the network -> predict_xstart, optimizer steps, steps over which the learning rate falls, and steps between
# two checkpoints.
NETWORKS = {"x0": (True, 300, 300, 50), "epsilon": (False, 600, 800, 100)}
EVALUATIONS = (1, 2, 3, 5, 10, 20, 50, 100, 250, 1000)
SAMPLERS = ("ancestral", "ddim", "ddim-eta1", "dpm-solver")
VARIANT = (10, 20, 50, 100)  # evaluations of the ancestral sampler with a limited variance
HELD_OUT = "tumour,63:155:28"  # odd slices: two of each volume


def main():
    """Train the networks, measure all points, and write the record."""
    args = parse()
    for name in args.networks:
        train(args, name)
    data = DataConfig(data_name="BRATS", data_dir=str(args.data_dir), slices=HELD_OUT)
    for name in args.networks:
        sampler_study.probe(name, args.work_dir / name, data, args.work_dir / "points")
    study = points(args.networks, args.most)
    for point in study:
        print(point.name, flush=True)
        sampler_study.measure(point, args.work_dir / point.network, data, args.work_dir / "points" / point.name)
    # the tables need both networks
    if set(args.networks) == set(NETWORKS):
        samplers.write_record(args.work_dir, args.log_dir, study, list_truths(data))


def points(networks, most):
    """Return all points of the study up to `most` evaluations, those with few evaluations first."""
    found = [Point(network, sampler, count) for network in networks for count in EVALUATIONS for sampler in SAMPLERS]
    found += [Point(network, "ancestral-limited", count) for network in networks for count in VARIANT]
    found += [Point(network, sampler, 10, "jittor") for network in networks for sampler in SAMPLERS]
    return sorted((point for point in found if point.evaluations <= most), key=lambda point: point.evaluations)


def parse():
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with the volumes, in Train/ and Test/")
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=Path("results/samplers-brats2021-64px"),
        help="folder for checkpoints and predictions",
    )
    parser.add_argument(
        "--log_dir", type=Path, default=ROOT / "logs" / "samplers-brats2021-64px", help="folder for the record"
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=tuple(NETWORKS),
        default=tuple(NETWORKS),
        help="networks to measure; the record is written only for both together",
    )
    parser.add_argument("--most", type=int, default=EVALUATIONS[-1], help="highest number of network evaluations")
    return parser.parse_args()


def train(args, name):
    """Train one network, unless it has its last checkpoint already."""
    predict_xstart, steps, falling, save_interval = NETWORKS[name]
    out_dir = args.work_dir / name
    if (out_dir / "checkpoints" / f"step_{steps:06d}").is_dir():
        return
    flags = [
        "--preset",
        "fast",
        "--predict_xstart",
        predict_xstart,
        "--data_name",
        "BRATS",
        "--data_dir",
        args.data_dir,
        "--slices",
        "even,brain",
        "--out_dir",
        out_dir,
        "--max_steps",
        steps,
        "--lr_anneal_steps",
        falling,
        "--save_interval",
        save_interval,
        "--keep_checkpoints",
        0,
        "--overwrite",  # of an interrupted record
        *brats.NETWORK,
        *brats.OPTIMIZATION,
    ]
    if subprocess.run([sys.executable, "-m", "medsegdiff", "train", *map(str, flags)]).returncode:
        raise UserError(
            "medsegdiff train failed; its message is above. Fix it and start again: finished parts are kept."
        )


if __name__ == "__main__":
    command_line.run_command(main)

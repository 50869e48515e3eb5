"""Train every installed backend on synthetic skin lesions from one seed, sample, score and compare them.

Works in --out_dir: pictures in data/, what each backend made in its folder, overview.png.
"""

import argparse
from pathlib import Path

from guided_diffusion_core import command_line
from guided_diffusion_core.backends import BACKENDS

PICTURES = {"train": 48, "test": 8, "size": 96}
TRAINING = {
    "preset": "fast",
    "image_size": 64,
    "num_channels": 32,
    "num_heads": 1,
    "learn_sigma": True,
    "use_scale_shift_norm": False,
    "attention_resolutions": 16,
    "lr": 1e-3,
    "batch_size": 8,
    "max_steps": 40,
    "log_interval": 10,
}


def add_flags(parser):
    """Add the flags."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=Path("demo"),
        metavar="FOLDER",
        help="new folder, or that of an earlier demo, which is replaced (default: demo)",
    )
    parser.add_argument(
        "--seed",
        type=command_line.whole_number,
        default=0,
        metavar="INT",
        help="seed of the pictures and of the trainings (default: 0)",
    )
    command_line.add_device(parser, "auto")


def run(args):
    """Run the demo."""
    from guided_diffusion_core.backends import installed_backends
    from guided_diffusion_core.data.phantoms import write_isic_phantoms
    from medsegdiff.demo.parts import Parts
    from medsegdiff.demo.results import minutes, prepare_folder, read_result

    backends = installed_backends()
    out_dir = prepare_folder(args.out_dir, ["data", *BACKENDS, "overview.png"])
    parts = Parts(len(backends))
    train_dir, test_dir = write_isic_phantoms(out_dir / "data", **PICTURES, seed=args.seed)
    print(f"{PICTURES['train']} pictures to train, {PICTURES['test']} to test: {out_dir / 'data'}", flush=True)
    results = {}
    for backend in backends:
        run_dir = out_dir / backend
        masks_dir = run_dir / "masks"
        common = {"backend": backend, "seed": args.seed, "device": args.device}
        training = parts.run(
            "train", backend, run_dir, **common, data_name="ISIC", data_dir=train_dir, out_dir=run_dir, **TRAINING
        )
        sampling = parts.run(
            "sample",
            backend,
            run_dir,
            **common,
            model_path=run_dir,
            data_dir=test_dir,
            out_dir=masks_dir,
            batch_size=PICTURES["test"],
        )
        parts.run("score", backend, run_dir, inp_pth=masks_dir, data_name="ISIC", data_dir=test_dir)
        results[backend] = read_result(run_dir, masks_dir, training, sampling)
    _show(out_dir, test_dir, results)
    print(f"whole demo: {minutes(parts.elapsed())} minutes")


def _show(out_dir, test_dir, results):
    """Write the overview and print the table."""
    from guided_diffusion_core import evaluation
    from guided_diffusion_core.config import DataConfig
    from guided_diffusion_core.data import list_truths
    from guided_diffusion_core.data.layouts.isic import find_pairs
    from medsegdiff.demo.overview import write_overview
    from medsegdiff.demo.results import format_table, overview_rows

    folders = {backend: out_dir / backend / "masks" for backend in results}
    truths = list_truths(DataConfig(data_name="ISIC", data_dir=test_dir))
    images = {pair.name: pair.image for pair in find_pairs(test_dir, "Test")}
    write_overview(out_dir / "overview.png", overview_rows(images, truths, folders))
    # the masks of the first two backends are compared
    pair = list(folders.values())[:2]
    agreement = evaluation.mask_agreement(*pair, truths) if len(pair) == 2 else {}
    print("\n" + format_table(results, agreement))
    print("Seconds are those of the commands, start and Jittor's compilation of its operators included.")
    print(f"overview: {out_dir / 'overview.png'}")

"""Put two sampled runs of the same cases side by side: frameworks, samplers or seeds.

A and B are folders that medsegdiff sample wrote. With --data_dir both are scored here; otherwise
the summary.json that medsegdiff score left in each is used. Written to --out_dir: comparison.json,
comparison.html, bland_altman.png and scatter.png; the table is printed as Markdown.
"""

import argparse
import json
from pathlib import Path

from guided_diffusion_core.command_line import scoring_flags


def add_flags(parser):
    """Add the flags."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("first", metavar="A", help="folder of the first run's masks")
    parser.add_argument("second", metavar="B", help="folder of the second run's masks")
    parser.add_argument("--titles", nargs=2, metavar=("A", "B"), help="names of the runs (default: their folders')")
    parser.add_argument(
        "--out_dir", default="comparison", metavar="FOLDER", help="folder for what is written (default: comparison)"
    )
    scoring_flags.add_flags(parser)


def run(args):
    """Compare the two runs."""
    compare(args, args.titles or [Path(args.first).resolve().name, Path(args.second).resolve().name])


def compare(args, titles):
    """Score if asked for, compare, write and print."""
    from guided_diffusion_core import evaluation
    from guided_diffusion_core.evaluation.report import write_comparison
    from guided_diffusion_core.system.files import make_writable_folder, write_text

    folders = (args.first, args.second)
    first, second = (
        evaluation.Run(title, folder, summary)
        for title, folder, summary in zip(titles, folders, summaries(args, folders))
    )
    result = evaluation.compare(first, second)
    out_dir = make_writable_folder(args.out_dir, "--out_dir")
    write_comparison(out_dir, result, first, second, args.pictures)
    write_text(Path(out_dir) / "comparison.json", json.dumps(result, indent=2) + "\n")
    print("\n".join((*evaluation.TABLE_HEAD, *evaluation.table_rows(result))))
    print(f"written to {out_dir}")


def summaries(args, folders):
    """The two runs' scores: computed where the flags name data, else read."""
    from guided_diffusion_core import data, evaluation
    from guided_diffusion_core.sampling.folder import as_sampled

    if not args.data_dir:
        return [evaluation.read_summary(folder) for folder in folders]
    threshold = scoring_flags.threshold(args)
    surfaces = scoring_flags.surfaces(args)
    chosen = scoring_flags.data_config(args)
    found = []
    for folder in folders:
        config, note = as_sampled(chosen, folder)
        if note:
            print(note)
        found.append(evaluation.evaluate(folder, data.list_truths(config), threshold, surfaces))
    return found

"""Measures speed and memory of both backends and, beside them, of the original.

`python -m benchmarks run` writes results.json, README.md and plots; benchmarks/README.md says what the
figures mean.
"""

import argparse
import datetime

from benchmarks import peer
from benchmarks.cases import WHAT, make_cases
from benchmarks.report import write_report
from benchmarks.run import Benchmark
from benchmarks.worker import PEER
from guided_diffusion_core import command_line
from guided_diffusion_core.backends import BACKENDS
from guided_diffusion_core.errors import found_expected


class _Subparser(command_line.CommandParser):
    """A `CommandParser` as argparse makes it for a command."""

    def __init__(self, **keywords):
        super().__init__(keywords.pop("description", None))
        self.prog = keywords["prog"]


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Subparser)
    run = commands.add_parser("run", help="measure, then write the report")
    run.add_argument(
        "--what",
        nargs="+",
        choices=tuple(WHAT),
        default=["evaluation", "training"],
        help="; ".join(f"{name}: {about}" for name, about in WHAT.items()) + " (default: evaluation training)",
    )
    run.add_argument(
        "--versions", nargs="+", choices=("new", "1"), default=["new"], help="of the network (default: new)"
    )
    run.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[64, 256],
        metavar="PIXELS",
        help="sides of the network input (default: 64 256)",
    )
    run.add_argument("--width", type=int, default=128, metavar="INT", help="base width of the network (default: 128)")
    run.add_argument(
        "--batch", type=int, default=0, metavar="INT", help="examples at once (default: 4 at 64 px, else 1)"
    )
    run.add_argument("--backends", nargs="*", choices=tuple(BACKENDS), default=list(BACKENDS), help="(default: all)")
    run.add_argument("--peer", default="", metavar="FOLDER", help="the original's folder, to measure it as well")
    run.add_argument("--repeats", type=int, default=5, metavar="INT", help="rounds (default: 5)")
    run.add_argument(
        "--seconds",
        type=int,
        default=120,
        metavar="INT",
        help="no round of a case begins after so many; at least one does (default: 120)",
    )
    run.add_argument("--threads", type=int, default=1, metavar="INT", help="of each implementation (default: 1)")
    run.add_argument(
        "--cold", action="store_true", help="start: Jittor with an empty cache too, which takes minutes, once"
    )
    run.add_argument("--resume", action="store_true", help="keep the cases that --out_dir holds already")
    run.add_argument(
        "--out_dir",
        default=f"logs/benchmark-{datetime.date.today()}",
        metavar="FOLDER",
        help="for the report (default: %(default)s)",
    )
    report = commands.add_parser("report", help="write table and plots of a folder's results again")
    report.add_argument("out_dir", metavar="FOLDER", help="folder that run has written")
    return parser


def main():
    args = build_parser().parse_args()
    if args.command == "run":
        _run(args)
    else:
        write_report(args.out_dir)


def _run(args):
    for name in ("repeats", "seconds", "threads", "width"):
        if getattr(args, name) < 1:
            raise found_expected(f"--{name}", getattr(args, name), "at least 1", "Use 1 or more.")
    if args.peer:
        peer.check_folder(args.peer)
    implementations = ([PEER] if args.peer else []) + args.backends
    benchmark = Benchmark(
        args.out_dir, implementations, args.peer, args.threads, args.repeats, args.seconds, args.cold, args.resume
    )
    for case in benchmark.run(make_cases(args.what, args.versions, args.sizes, args.width, args.batch)):
        write_report(args.out_dir)
        print(f"{case.name}: see {args.out_dir}/README.md", flush=True)


if __name__ == "__main__":
    command_line.run_command(main)

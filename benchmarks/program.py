"""Measures speed and memory of the backends and, on request, of the original.

`python -m benchmarks run` writes results.json, README.md and plots. benchmarks/README.md explains the figures.
"""

import datetime

from benchmarks import peer
from benchmarks.cases import VERSIONS, WHAT, make_cases
from benchmarks.implementations import ARITHMETICS, FLOAT32, PEER, chosen
from benchmarks.report import write_report
from benchmarks.run import Benchmark
from guided_diffusion_core.backends import BACKENDS
from guided_diffusion_core.command_line import Command, add_device, run_program
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks.registry import families
from guided_diffusion_core.system.devices import CPU, CUDA, parse


def add_run_flags(parser):
    """Add the flags of `run`."""
    _add_case_flags(parser)
    _add_measurement_flags(parser)


def _add_case_flags(parser):
    """Add the flags that say which cases are measured."""
    parser.add_argument(
        "--what",
        nargs="+",
        choices=tuple(WHAT),
        default=["evaluation", "training"],
        help="; ".join(f"{name}: {about}" for name, about in WHAT.items()) + " (default: evaluation training)",
    )
    parser.add_argument(
        "--versions",
        nargs="+",
        choices=(*VERSIONS, *(name for name, family in families().items() if "version" not in family.fixed)),
        default=["new"],
        help="versions of MedSegDiff's network, or other networks by name (default: new)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[64, 256],
        metavar="PIXELS",
        help="side of the network input (default: 64 256)",
    )
    parser.add_argument(
        "--width", type=int, default=128, metavar="INT", help="base width of the network (default: 128)"
    )
    parser.add_argument(
        "--batch", type=int, default=0, metavar="INT", help="examples per batch (default: 4 at 64 px, otherwise 1)"
    )


def _add_measurement_flags(parser):
    """Add the flags that say which implementations are measured, and how."""
    parser.add_argument(
        "--backends",
        nargs="*",
        choices=tuple(BACKENDS),
        default=list(BACKENDS),
        help="backends to measure (default: all)",
    )
    parser.add_argument(
        "--arithmetics",
        nargs="+",
        choices=tuple(ARITHMETICS),
        default=[FLOAT32],
        help="in which each backend is measured (default: float32)",
    )
    add_device(parser, CPU)
    parser.add_argument("--peer", default="", metavar="FOLDER", help="folder of the original, to measure it as well")
    parser.add_argument("--repeats", type=int, default=5, metavar="INT", help="number of rounds (default: 5)")
    parser.add_argument(
        "--seconds",
        type=int,
        default=120,
        metavar="INT",
        help="time for each case, after which no further round begins (default: 120)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="INT", help="threads of each implementation (default: 1)"
    )
    parser.add_argument(
        "--cold",
        action="store_true",
        help="for start: also measure Jittor once with an empty cache, which takes minutes",
    )
    parser.add_argument("--resume", action="store_true", help="keep the cases that are already measured in --out_dir")
    parser.add_argument(
        "--out_dir",
        default=f"logs/benchmark-{datetime.date.today()}",
        metavar="FOLDER",
        help="folder for the report (default: %(default)s)",
    )


def add_report_flags(parser):
    """Add the flags of `report`."""
    parser.add_argument("out_dir", metavar="FOLDER", help="folder that run has written")


def command_run(args):
    """Measure, then write the report."""
    for name in ("repeats", "seconds", "threads", "width"):
        if getattr(args, name) < 1:
            raise found_expected(f"--{name}", getattr(args, name), "at least 1", "Use 1 or more.")
    kind, _ = parse(args.device)
    if kind not in (CPU, CUDA):
        raise found_expected("--device", args.device, "cpu, cuda or cuda:N", "Name what is measured.")
    if args.peer:
        peer.check_folder(args.peer)
    names = ([PEER] if args.peer else []) + chosen(args.backends, args.arithmetics, args.device)
    benchmark = Benchmark(
        args.out_dir,
        names,
        peer=args.peer,
        threads=args.threads,
        device=args.device,
        repeats=args.repeats,
        seconds=args.seconds,
        cold=args.cold,
        resume=args.resume,
    )
    for case in benchmark.run(make_cases(args.what, args.versions, args.sizes, args.width, args.batch)):
        write_report(args.out_dir)
        print(f"{case.name}: see {args.out_dir}/README.md", flush=True)


def command_report(args):
    """Write table and plots of a folder's results again."""
    write_report(args.out_dir)


def add_memory_flags(parser):
    """Add the flags of `memory`."""
    parser.add_argument("--widths", nargs="+", type=int, default=[32, 64, 128], metavar="INT", help="base widths")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256], metavar="PIXELS", help="sides")


def command_memory(args):
    """Print the memory of training steps."""
    from benchmarks.memory import table

    print(table(args.widths, args.sizes))


COMMANDS = (
    Command("run", "measure, then write the report", add_run_flags, command_run),
    Command("report", "write table and plots of a folder's results again", add_report_flags, command_report),
    Command("memory", "count what a training step keeps in memory", add_memory_flags, command_memory),
)


def main():
    """Run `python -m benchmarks` and end the process with the command's exit code."""
    run_program("python -m benchmarks", __doc__, COMMANDS)

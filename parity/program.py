"""The parity suite: records what two implementations compute, compares it, and names the layer that differs.

Exit codes: 0 they agree, 1 they diverge, 2 something was not compared, or wrong input.
"""

import json
import sys
from pathlib import Path

from tqdm import tqdm

from guided_diffusion_core.backends import BACKENDS, COMPARED
from guided_diffusion_core.command_line import Command, add_device, run_program
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.devices import parse as parse_device
from guided_diffusion_core.system.files import make_writable_folder, write_atomic
from parity import run
from parity.compare import compare_case, compare_dumps
from parity.dump import LAYERS, MANIFEST, read_dump
from parity.locate import LAYER_FAMILIES, locate
from parity.protocol import PRECISIONS
from parity.result import EXIT_CODES, format_verdict, result_tree

RESULT = "result.json"
REPORT = "report.html"


def add_run_flags(parser):
    """Add the flags of `run`."""
    parser.add_argument("cases", nargs="+", metavar="CASE", help="a case, a family, a pattern with * and ?, or all")
    _add_recording(parser)
    parser.add_argument(
        "--layers", action="store_true", help="run every layer of small networks alone too, as locate does"
    )


def add_locate_flags(parser):
    """Add the flags of `locate`."""
    parser.add_argument("cases", nargs=1, metavar="CASE", help="a case, a family, a pattern with * and ?")
    _add_recording(parser)


def _add_recording(parser):
    parser.add_argument(
        "--backends",
        default=",".join(COMPARED),
        metavar="A,B",
        help="the reference and the candidate; one alone is only recorded. pytorch@cuda is PyTorch on a GPU, "
        "whatever --device says (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        default=",".join(PRECISIONS),
        metavar="P,Q",
        help="in which the candidate runs (default: float64,float32)",
    )
    parser.add_argument(
        "--suite",
        default=run.SUITE,
        metavar="MODULE",
        help=f"the network and its cases, see parity/README.md (default: {run.SUITE})",
    )
    parser.add_argument(
        "--out_dir",
        default="parity_run",
        metavar="FOLDER",
        help="new folder for the dumps, result.json and report.html (default: parity_run)",
    )
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted run has recorded there")
    parser.add_argument("--threads", type=int, default=1, metavar="INT", help="of each process (default: 1)")
    add_device(parser, "cpu")


def add_compare_flags(parser):
    """Add the flags of `compare`."""
    parser.add_argument("reference", metavar="A", help="folder of the reference's dump")
    parser.add_argument("candidate", metavar="B", help="folder of the candidate's dump")
    parser.add_argument("--out_dir", default="", metavar="FOLDER", help="also write result.json and report.html here")


def add_mutate_flags(parser):
    """Add the flags of `mutate`."""
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="names of faults (default: all)")
    parser.add_argument(
        "--backend",
        choices=COMPARED,
        default=COMPARED[1],
        help="the port that gets the faults (default: %(default)s)",
    )
    parser.add_argument("--part", default="1/1", metavar="I/N", help="only every N-th fault, from the I-th on")
    parser.add_argument(
        "--reference",
        default="",
        metavar="FOLDER",
        help="keep the other backend's records here, and use those of an earlier run",
    )
    parser.add_argument("--table", default="", metavar="FILE", help="write the table of all faults here")


def add_report_flags(parser):
    """Add the flags of `report`."""
    parser.add_argument("out_dir", metavar="FOLDER", help="folder that run or locate has written")


def add_list_flags(parser):
    """Add the flags of `list`."""
    parser.add_argument("--suite", default=run.SUITE, metavar="MODULE", help=f"(default: {run.SUITE})")


def command_list(args):
    """Print the cases of a suite."""
    for case in run.load_suite(args.suite).CASES:
        print(f"{case.name:<24} {', '.join(case.precisions):<17} {case.about}")
    return 0


def command_run(args):
    """Record cases and compare them; `locate` runs the layers alone too."""
    cases = run.select_cases(run.load_suite(args.suite), args.cases)
    names = _implementations(args.backends)
    precisions = _choices("--precision", args.precision, PRECISIONS)
    if len(names) > 2:
        raise found_expected("--backends", args.backends, "a reference and a candidate", "Name two.")
    if args.threads < 1:
        raise found_expected("--threads", args.threads, "at least 1", "Use 1.")
    out_dir = Path(args.out_dir)
    backends = [_open_backend(name, args, out_dir) for name in names]
    jobs = {
        backend.name: [
            job for case in cases for job in run.jobs_of(case, precisions, k == 0 or len(names) == 1, backend.folder)
        ]
        for k, backend in enumerate(backends)
    }
    layered = _layered(cases, args) if len(names) == 2 else []
    tqdm.write(f"recording {len(cases)} cases; dumps and logs go to {out_dir}", file=sys.stderr)
    try:
        run.record(backends, jobs)
        if layered:
            run.record(backends, _layer_jobs(layered, precisions, *backends))
    finally:
        for backend in backends:
            backend.stop()
    if len(backends) == 1:
        print(
            f"recorded {len(cases)} cases of {names[0]} in {backends[0].folder}; compare it with: "
            f"python -m parity compare A B"
        )
        return 0
    return _compare_run(args, cases, precisions, backends, layered)


def _implementations(text):
    """Return the distinct names in a text such as "pytorch,pytorch@cuda". Raises `UserError` for an unknown one."""
    names = list(dict.fromkeys(text.split(",")))
    _choices("--backends", ",".join(name.partition(run.AT)[0] for name in names), BACKENDS)
    for name in names:
        _, at, device = name.partition(run.AT)
        if at:
            parse_device(device)
    return names


def _choices(flag, text, known):
    """Return the distinct names in a text, separated by commas. Raises `UserError` for an unknown one."""
    names = list(dict.fromkeys(text.split(",")))
    wrong = [name for name in names if name not in known]
    if wrong:
        raise found_expected(
            flag, repr(wrong[0]), f"names among {', '.join(known)}, separated by commas", "Correct it."
        )
    return names


def _open_backend(name, args, out_dir):
    folder = out_dir / name
    if (folder / MANIFEST).exists() and not args.resume:
        raise found_expected(
            f"--out_dir {args.out_dir}",
            f"a dump of {name} from an earlier run",
            "a new folder",
            "Choose another one, or add --resume to go on with that run.",
        )
    backend = run.Backend(name, args.suite, folder, args.threads, args.device)
    if args.resume:
        backend.resume()
    return backend


def _layered(cases, args):
    """Return the cases whose layers are run alone; with `run --layers` these are the cases of small networks."""
    if args.command == "locate":
        return [case for case in cases if case.family in LAYER_FAMILIES]
    return [case for case in cases if args.layers and case.family in LAYER_FAMILIES and "float64" in case.precisions]


def _layer_jobs(cases, precisions, reference, candidate):
    """Return backend name -> jobs that run every layer alone, on the reference's float32 inputs."""
    jobs = {reference.name: [], candidate.name: []}
    for case in cases:
        jobs[reference.name] += run.layer_jobs(case, reference.folder, True)
        jobs[candidate.name] += [
            job
            for job in run.layer_jobs(case, reference.folder, False)
            if job.precision in precisions and job.precision in case.precisions
        ]
    return jobs


def _compare_run(args, cases, precisions, backends, layered):
    reference, candidate = (backend.dump for backend in backends)
    wanted = [(case.name, precision) for case in cases for precision in case.precisions if precision in precisions]
    verdicts = []
    located = []
    for name, precision in tqdm(wanted, unit="case", desc="comparing", dynamic_ncols=True):
        verdicts.append(compare_case(reference, candidate, name, precision))
        tqdm.write(format_verdict(verdicts[-1]))
    if layered:
        verdicts += [
            compare_case(reference, candidate, case.name, precision, LAYERS)
            for case in layered
            for precision in case.precisions
            if precision in precisions
        ]
        located = _located(cases, verdicts)
    return _finish(args.suite, reference, candidate, verdicts, located, Path(args.out_dir))


def _located(cases, verdicts):
    found = []
    for case in cases:
        free, alone = (
            [verdict for verdict in verdicts if verdict.case == case.name and (verdict.variant == LAYERS) == layers]
            for layers in (False, True)
        )
        found.append(locate(free, alone))
    return [culprit for culprit in found if culprit]


def _finish(suite, reference, candidate, verdicts, located, out_dir):
    """Write result and report, print the outcome, return the exit code."""
    from parity.report import write_report  # draws with matplotlib, which takes a second to import

    tree = result_tree(suite, reference, candidate, verdicts, located)
    for culprit in located:
        print(f"{culprit.case}: {culprit.text}")
    for line in tree["stale"]:
        print(line)
    if out_dir != Path(""):
        make_writable_folder(out_dir, "--out_dir")
        write_atomic(out_dir / RESULT, (json.dumps(tree, separators=(",", ":")) + "\n").encode())
        write_report(tree, reference, candidate, out_dir / REPORT)
        print(f"report: {out_dir / REPORT}")
    tensors = sum(len(verdict.rows) for verdict in verdicts)
    print(
        f"{tree['state']}: {candidate.backend} against {reference.backend}, {len(verdicts)} comparisons, "
        f"{tensors} tensors"
    )
    return EXIT_CODES[tree["state"]]


def command_compare(args):
    """Compare two dumps."""
    reference = read_dump(args.reference)
    candidate = read_dump(args.candidate)
    verdicts = compare_dumps(reference, candidate, progress=lambda verdict: tqdm.write(format_verdict(verdict)))
    suite = reference.flags.get("suite", "")
    return _finish(suite, reference, candidate, verdicts, [], Path(args.out_dir))


def command_report(args):
    """Write the report of a run again."""
    from parity.report import write_report

    out_dir = Path(args.out_dir)
    try:
        tree = json.loads((out_dir / RESULT).read_text(encoding="utf-8"))
        dumps = [read_dump(out_dir / tree[role]["backend"]) for role in ("reference", "candidate")]
    except (OSError, ValueError, KeyError) as error:
        raise found_expected(
            out_dir / RESULT, f"no result ({error})", "a folder that run or locate has written", "Check the path."
        ) from error
    write_report(tree, *dumps, out_dir / REPORT)
    print(f"report: {out_dir / REPORT}")
    return EXIT_CODES[tree["state"]]


def command_mutate(args):
    """Plant every fault and see that it is found."""
    from parity.mutate import run_mutations

    return run_mutations(args.faults, args.backend, args.part, args.table, args.reference)


COMMANDS = (
    Command("run", "record cases in both backends and compare them", add_run_flags, command_run),
    Command("locate", "run a case, then every layer alone, and name the culprit", add_locate_flags, command_run),
    Command("compare", "compare two recorded dumps, from any machine", add_compare_flags, command_compare),
    Command("mutate", "plant every fault in one backend and see that each is found", add_mutate_flags, command_mutate),
    Command("report", "write report.html of a run's folder again", add_report_flags, command_report),
    Command("list", "show the cases", add_list_flags, command_list),
)


def main():
    """Run `python -m parity` and end the process with the command's exit code."""
    run_program("python -m parity", __doc__, COMMANDS)

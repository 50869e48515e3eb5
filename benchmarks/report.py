"""Table and plots of `results.json`."""

import json
import statistics
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import scaling, targets
from benchmarks.cases import WHAT, Case, network
from benchmarks.operations import evaluation_operations, training_operations
from benchmarks.run import RESULTS
from benchmarks.worker import PEER
from guided_diffusion_core.backends import COMPARED
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import write_atomic

OPERATIONS = {"evaluation": evaluation_operations, "training": training_operations}
PER_HOUR = ("cases", "loading")  # shown as how many in an hour
COMPUTED = ("matmul", "convolution")  # limits of arithmetic, beside that of memory


def write_report(out_dir):
    """Write README.md and the plots beside the results in a folder. Raises `UserError` if there are none."""
    path = Path(out_dir) / RESULTS
    if not path.is_file():
        raise found_expected(
            out_dir, f"no {RESULTS}", "a folder that `python -m benchmarks run` has written", "Give its --out_dir."
        )
    results = json.loads(path.read_text())
    summary = [summarise(row, results) for row in results["rows"]]
    write_atomic(Path(out_dir) / "README.md", readme(results, summary).encode())
    for what in WHAT:
        rows = [row for row in summary if row["case"].what == what]
        if rows:
            plot = scaling.plot if what == "scaling" else _plot
            plot(rows, Path(out_dir) / f"{what}.png")


def summarise(row, results):
    """The figures of one row of the results.

    Returns a dict: case, implementation, seconds and cpu (medians, of one step, evaluation, case or image),
    ratio and cpu_ratio to the reference (`PEER`, or the reference among the backends without one; the median of the ratios round by
    round; None of the reference), memory, rate (operations per second of processor time) and share (of the
    machine's limit; both None where operations are not counted).
    """
    case = Case(**{key: value for key, value in row["case"].items() if key != "name"})
    reference = _reference(row, results["rows"])
    found = {
        "case": case,
        "implementation": row["implementation"],
        "memory": row["memory_mib"],
        "seconds": row["scale"] * statistics.median(row["wall"]),
        "rate": None,
        "share": None,
        "cpu": row["scale"] * statistics.median(row["cpu"]),
        "first": row["first"]["wall"],
    }
    for name, clock in (("ratio", "wall"), ("cpu_ratio", "cpu")):
        pairs = zip(row[clock], reference[clock]) if reference else ()
        ratios = [row["scale"] * a / (reference["scale"] * b) for a, b in pairs]
        found[name] = statistics.median(ratios) if ratios else None
    if case.what in OPERATIONS:
        found["rate"] = OPERATIONS[case.what](network(case), case.batch) / found["cpu"]
        found["share"] = found["rate"] / limit(results["limits"][row["case"]["name"]])
    return found


def _reference(row, rows):
    """The row of the same case that this one is compared with, or None."""
    same = {other["implementation"]: other for other in rows if other["case"] == row["case"]}
    reference = same.get(PEER) or same.get(COMPARED[0])
    return None if reference is row else reference


def limit(rounds):
    """The machine's limit, operations per second of processor time: the best of its medians over the rounds."""
    return max(
        statistics.median(rates[name]["cpu"] for rates in rounds) for name in rounds[0] if name.startswith(COMPUTED)
    )


def readme(results, summary):
    """The text of the report."""
    settings = results["settings"]
    machine = results["machine"]
    parts = [
        f"""# Benchmark

Written by `python -m benchmarks` (`benchmarks/README.md` says what is measured and how).
{machine["processor"]}, {machine["cores"]} cores; {settings["threads"]} thread(s) for each implementation; load of the
machine at the start {machine["load"]:.1f}; up to {settings["repeats"]} rounds in which the implementations take turns.
Seconds are medians over the rounds; a ratio is the median of the ratios round by round, to `{PEER}` (the
original) where it was measured, else to {COMPARED[0]}.
"""
    ]
    parts += filter(None, [targets.table(summary)])
    for what, about in WHAT.items():
        rows = [row for row in summary if row["case"].what == what]
        if rows:
            table = scaling.table(rows) if what == "scaling" else _table(rows)
            parts.append(f"## {what}: {about}\n\n{table}\n\n![{what}]({what}.png)\n")
    compared = [
        f"| {row['case']['name']} | {row['implementation']} | "
        + ", ".join(f"{name} {value:.1e}" for name, value in row["differences"].items())
        + " |"
        for row in results["rows"]
        if row.get("differences")
    ]
    if compared:
        parts.append(
            "## Outputs compared before measuring\n\nDistance from the reference, root mean square relative "
            "to its own.\n\n| case | implementation | distance |\n|---|---|---|\n" + "\n".join(compared) + "\n"
        )
    parts.append(_limits(results["limits"]))
    return "\n".join(parts)


def _table(rows):
    head = "| case | implementation | s | ratio | CPU s | CPU ratio | peak MiB | first s |"
    counted = rows[0]["rate"] is not None
    hourly = rows[0]["case"].what in PER_HOUR
    head += (" GFLOP/s | share of limit |" if counted else "") + (" per hour |" if hourly else "")
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in rows:
        cells = [
            row["case"].name,
            row["implementation"],
            f"{row['seconds']:.3g}",
            _ratio(row["ratio"]),
            f"{row['cpu']:.3g}",
            _ratio(row["cpu_ratio"]),
            f"{row['memory']:.0f}",
            f"{row['first']:.3g}",
        ]
        cells += [f"{row['rate'] / 1e9:.0f}", f"{100 * row['share']:.0f}%"] if counted else []
        cells += [f"{3600 / row['seconds']:.3g}"] if hourly else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(value):
    return "" if value is None else f"{value:.3g}"


def _limits(limits):
    rounds = [rates for case in limits.values() for rates in case]
    if not rounds:
        return ""
    lines = [
        f"| {name} | {statistics.median(rates[name]['cpu'] for rates in rounds) / 1e9:.1f} "
        f"{'GB/s' if name == 'copy' else 'GFLOP/s'} |"
        for name in rounds[0]
    ]
    return (
        "## The machine's own limits\n\nMeasured in the same rounds, per second of processor time; a case's share "
        "is of the best of the arithmetic ones in its own rounds.\n\n| what | median |\n|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def _plot(rows, path):
    """Seconds and peak memory of each case, a bar for each implementation."""
    names = sorted({row["implementation"] for row in rows})
    cases = list(dict.fromkeys(row["case"].name for row in rows))
    figure = Figure(figsize=(11, 1.5 + 0.5 * len(cases) * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    shown_keys = (("seconds", "seconds"), ("memory", "peak memory, MiB"))
    for axes, (key, label) in zip(figure.subplots(1, 2, sharey=True), shown_keys):
        for place, name in enumerate(names):
            shown = {row["case"].name: row[key] for row in rows if row["implementation"] == name}
            offsets = [cases.index(case) + 0.8 * place / len(names) for case in shown]
            bars = axes.barh(offsets, list(shown.values()), height=0.7 / len(names), label=name)
            axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.set(xlabel=label, xmargin=0.15)
        axes.set_yticks([index + 0.4 * (len(names) - 1) / len(names) for index in range(len(cases))], cases)
    axes.legend()
    axes.invert_yaxis()
    figure.savefig(path, dpi=100)

"""The report of a benchmark: tables and plots from `results.json`."""

import json
import statistics
from pathlib import Path

from benchmarks import scaling, targets
from benchmarks.cases import WHAT, Case, network
from benchmarks.implementations import MACHINE, PEER, arithmetic_of
from benchmarks.operations import evaluation_operations, training_operations
from benchmarks.run import RESULTS
from guided_diffusion_core.backends import COMPARED
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.html_report import figure_bytes, make_figure
from guided_diffusion_core.system.devices import CPU
from guided_diffusion_core.system.files import write_atomic

OPERATIONS = {"evaluation": evaluation_operations, "training": training_operations}
PER_HOUR = ("cases", "loading")  # also shown as a number per hour
COMPUTED = ("matmul", "convolution")  # limits of arithmetic; the other limit is that of memory


def write_report(out_dir):
    """Write README.md and the plots into the folder of the results. Raises `UserError` if there are no results."""
    path = Path(out_dir) / RESULTS
    if not path.is_file():
        raise found_expected(
            out_dir, f"no {RESULTS}", "a folder that `python -m benchmarks run` has written", "Give its --out_dir."
        )
    results = json.loads(path.read_text())
    summary = [summarise(row, results) for row in results["rows"]]
    write_atomic(Path(out_dir) / "README.md", readme(results, summary).encode())
    for what in WHAT:
        rows = _rows_of(summary, what)
        if rows:
            plot = scaling.plot if what == "scaling" else _plot
            plot(rows, Path(out_dir) / f"{what}.png")


def summarise(row, results):
    """Compute the figures of one row of the results.

    Returns a dict with
        case, implementation
        seconds, cpu      medians over the rounds, of one step, evaluation, case or image
        ratio, cpu_ratio  median over the rounds of the ratio to the reference; None for the reference itself.
                          The reference is `PEER` or, without it, the first of the compared backends.
        memory, first     peak memory in MiB, seconds of the first repetition
        rate, share       operations per second, and as a share of the machine's limit in the same arithmetic; None if
                          operations are not counted

    The clock of rates and of `cpu_ratio` is the processor's time; on a GPU it is that of the wall.
    """
    device = device_of(results)
    clock = _clock(device)
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
    found["ratio"] = _median_ratio(row, reference, "wall")
    found["cpu_ratio"] = _median_ratio(row, reference, clock)
    if case.what in OPERATIONS:
        seconds = row["scale"] * statistics.median(row[clock])
        found["rate"] = OPERATIONS[case.what](network(case), case.batch) / seconds
        arithmetic = arithmetic_of(row["implementation"], device)
        found["share"] = found["rate"] / limit(results["limits"][row["case"]["name"]], device, arithmetic)
    return found


def device_of(results):
    """Return the device of the results of a run."""
    return results["settings"].get("device", CPU)  # runs before there was a choice


def _clock(device):
    """Return the clock that counts: "cpu", the time of the processor, or "wall" on a GPU."""
    return "cpu" if device == CPU else "wall"


def _median_ratio(row, reference, clock):
    """Return the median over the rounds of the ratio of two rows' seconds, or None."""
    if not reference:
        return None
    scale = row["scale"] / reference["scale"]
    ratios = [scale * seconds / expected for seconds, expected in zip(row[clock], reference[clock])]
    return statistics.median(ratios) if ratios else None


def _reference(row, rows):
    """Return the row of the same case to compare a row with, or None."""
    same = {other["implementation"]: other for other in rows if other["case"] == row["case"]}
    reference = same.get(PEER) or same.get(COMPARED[0])
    return None if reference is row else reference


def limit(rounds, device, arithmetic):
    """Return the machine's limit in operations per second: the largest median over the rounds.

    device, arithmetic: of the computation. A CPU has one limit, a GPU one for each arithmetic.
    """
    names = [name for name in rounds[0] if name.startswith(COMPUTED)]
    if device != CPU:
        names = [name for name in names if name.endswith(f", {arithmetic}")]
    return max(_median_rate(name, rounds, device) for name in names)


def _median_rate(name, rounds, device):
    return statistics.median(rates[name][_clock(device)] for rates in rounds)


def readme(results, summary):
    """Return the text of the report."""
    settings = results["settings"]
    machine = results["machine"]
    device = device_of(results)
    computed = "" if device == CPU else f"Computed on {device}: {results['versions'][MACHINE]['gpu']}.\n"
    parts = [
        f"""# Benchmark

Written by `python -m benchmarks` (`benchmarks/README.md` says what is measured and how).
{computed}{machine["processor"]}, {machine["cores"]} cores; {settings["threads"]} thread(s) for each
implementation; load of the machine at the start {machine["load"]:.1f}; up to {settings["repeats"]} rounds in which
the implementations take turns.
Seconds are medians over the rounds; a ratio is the median of the ratios round by round, to `{PEER}` (the
original) where it was measured, else to {COMPARED[0]}.
"""
    ]
    target_table = targets.table(summary, device)
    if target_table:
        parts.append(target_table)
    for what, about in WHAT.items():
        rows = _rows_of(summary, what)
        if rows:
            table = scaling.table(rows) if what == "scaling" else _table(rows)
            parts.append(f"## {what}: {about}\n\n{table}\n\n![{what}]({what}.png)\n")
    compared = []
    for row in results["rows"]:
        if row.get("differences"):
            distances = ", ".join(f"{name} {value:.1e}" for name, value in row["differences"].items())
            compared.append(f"| {row['case']['name']} | {row['implementation']} | {distances} |")
    if compared:
        parts.append(
            "## Outputs compared before measuring\n\nRoot mean square of the difference from the reference, relative "
            "to its root mean square.\n\n| case | implementation | distance |\n|---|---|---|\n"
            + "\n".join(compared)
            + "\n"
        )
    parts.append(_limits(results["limits"], device))
    return "\n".join(parts)


def _rows_of(summary, what):
    return [row for row in summary if row["case"].what == what]


def _table(rows):
    """Format rows of one kind of measurement as a Markdown table."""
    head = "| case | implementation | s | ratio | CPU s | CPU ratio | peak MiB | first s |"
    counted = rows[0]["rate"] is not None
    hourly = rows[0]["case"].what in PER_HOUR
    if counted:
        head += " GFLOP/s | share of limit |"
    if hourly:
        head += " per hour |"
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
        if counted:
            cells += [f"{row['rate'] / 1e9:.0f}", f"{100 * row['share']:.0f}%"]
        if hourly:
            cells.append(f"{3600 / row['seconds']:.3g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(value):
    return "" if value is None else f"{value:.3g}"


def _limits(limits, device):
    rounds = [rates for case in limits.values() for rates in case]
    if not rounds:
        return ""
    lines = []
    for name in rounds[0]:
        unit = "GB/s" if name == "copy" else "GFLOP/s"
        lines.append(f"| {name} | {_median_rate(name, rounds, device) / 1e9:.1f} {unit} |")
    second = "second of processor time" if device == CPU else "second"
    return (
        f"## Limits of the machine\n\nMeasured in the same rounds, per {second}. The share of a case "
        "refers to the highest limit of its arithmetic in its rounds.\n\n| what | median |\n|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def _plot(rows, path):
    """Plot seconds and peak memory of each case, with a bar per implementation."""
    names = sorted({row["implementation"] for row in rows})
    cases = list(dict.fromkeys(row["case"].name for row in rows))
    figure = make_figure(11, 1.5 + 0.5 * len(cases) * len(names))
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
    write_atomic(path, figure_bytes(figure))

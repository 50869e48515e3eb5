"""The folder of a sampling: the settings of its run, and the finished cases of all its parts.

A folder contains the masks of one run. Every process writes its report there when it begins. A process that starts
later, to continue the run or to sample another part, compares its settings with this report.
"""

import dataclasses
import fnmatch
import json

import blobfile as bf

from guided_diffusion_core.config import SECTIONS, current_data, current_sampling
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import list_names, read_bytes, write_atomic

REPORT = "run_report"
# Settings that may differ between the processes of one run. The path of the checkpoint is one of them, because its
# content is compared.
FREE = ("out_dir", "model_path", "part_id", "num_parts", "processes", "compute.device")
# name of an entry of the report -> flag that decides it
FLAGS = {"model_sha256": "model_path", "images": "data_dir"}


def report_path(out_dir, part_id=0, num_parts=1):
    """Return the path of a process' report: run_report.json, or run_report_part_0_of_3.json."""
    part = f"_part_{part_id}_of_{num_parts}" if num_parts > 1 else ""
    return bf.join(str(out_dir), f"{REPORT}{part}.json")


def write_report(path, report):
    """Write a report, a dict of JSON values. A reader finds the old report or the new one, never a part."""
    write_atomic(path, (json.dumps(report, indent=2) + "\n").encode())


def part_of(cases, part_id, num_parts):
    """Return the cases of a part: number i belongs to part i modulo num_parts.

    Raises `UserError` for a part that does not exist.
    """
    if num_parts < 1:
        raise found_expected("--num_parts", num_parts, "at least 1", "Use 1.")
    if not 0 <= part_id < num_parts:
        raise found_expected(
            "--part_id",
            part_id,
            f"a number from 0 to {num_parts - 1}, for --num_parts {num_parts}",
            "Give each process one of these.",
        )
    return cases[part_id::num_parts]


def require_one_sharing(processes, part_id, num_parts):
    """Raise `UserError` for flags of a part together with a launcher, whose processes would share each part again."""
    if processes.size > 1 and (part_id, num_parts) != (0, 1):
        raise found_expected(
            "--num_parts",
            f"{num_parts} and --part_id {part_id} with {processes.size} processes of {processes.launcher}",
            "one way to share the cases",
            "Leave both flags out.",
        )


def require_same_run(writer, cases, settings):
    """Raise `UserError` for a folder with masks of another run. It names the first setting that differs.

    writer:   `CaseWriter` of the folder, in which nothing is changed.
    cases:    all cases of the run.
    settings: the settings of this run, JSON values.
    """
    reports = _reports(writer.out_dir)
    for path, report in reports.items():
        found = _flat(settings)
        expected = _flat(report)
        for name, value in found.items():
            if name not in FREE and expected.get(name) != value:
                flag = name.split(".")[-1]
                raise found_expected(
                    f"--{FLAGS.get(flag, flag)}",
                    _shown(value),
                    f"{_shown(expected.get(name))}, with which the "
                    f"masks in {writer.out_dir} were sampled ({bf.basename(path)})",
                    "Give the same, or another --out_dir.",
                )
    if not reports:
        done = [case.name for case in cases if writer.is_complete(case)]
        if done:
            raise found_expected(
                f"--out_dir {writer.out_dir}",
                f"masks, such as that of {done[0]}, without a {REPORT}.json that says how they were sampled",
                "a folder without masks",
                "Choose another folder.",
            )


def find_reports(folder):
    """Return the paths of all reports in a folder, [] without a folder."""
    return [bf.join(str(folder), name) for name in list_names(folder) if fnmatch.fnmatch(name, f"{REPORT}*.json")]


def _reports(folder):
    """Return path -> content of all reports in a folder."""
    reports = {}
    for path in find_reports(folder):
        try:
            reports[path] = _current(dict(json.loads(read_bytes(path))))
        except (ValueError, TypeError) as error:
            raise found_expected(
                path, f"no JSON object ({error})", "the report of a sampling", "Choose another --out_dir."
            ) from error
    return reports


def _current(report):
    """Return a report under today's names, in which the settings that an older version did not write have defaults."""
    renamed = {"sampling": current_sampling, "data": current_data}
    for section, rename in renamed.items():
        if section in report:
            report[section] = {**dataclasses.asdict(SECTIONS[section]()), **rename(report[section])}
    return report


def as_sampled(data, folder):
    """Return (the `DataConfig` to score a folder of masks, a line about it or None).

    Only slices that were sampled are scored, numbered in the orientation of the sampling: the others are empty in
    the masks. A folder without a report is scored as `data` says.
    Raises `UserError` for a broken report.
    """
    reports = _reports(str(folder)) if bf.isdir(str(folder)) else {}
    sampled = next((report["data"] for report in reports.values() if "data" in report), None)
    if sampled is None:
        return data, None
    data = dataclasses.replace(data, orientation=sampled["orientation"])
    if sampled["slices"] in ("all", data.slices):
        return data, None
    # both conditions must hold
    slices = sampled["slices"] if data.slices == "all" else f"{sampled['slices']},{data.slices}"
    return dataclasses.replace(data, slices=slices), f"only the sampled slices of {folder} are scored: {slices}"


def _flat(tree, prefix=""):
    """Flatten nested dicts to one, with names such as "sampling.eta"."""
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _shown(value):
    return "none" if value is None else repr(value)

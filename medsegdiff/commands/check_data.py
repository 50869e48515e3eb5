"""Find all problems of a data set at once, and take its fingerprint: sizes, spacings, intensities, foreground.

Exit code 0: no error (there may be warnings); 1: errors found; 2: wrong input.
"""

import dataclasses
import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from guided_diffusion_core import command_line
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_files
from guided_diffusion_core.data.check.checking import Check
from guided_diffusion_core.data.check.fingerprint import fingerprint_png
from guided_diffusion_core.data.check.inventory import take_inventory
from guided_diffusion_core.data.guess import data_name_of
from guided_diffusion_core.data.splits import NoSplit, folder_of, has_split
from guided_diffusion_core.system.files import make_writable_folder, write_atomic, write_text


def add_flags(parser):
    """Add the flags."""
    parser.description = __doc__
    command_line.add_settings(parser, DataConfig, "data_name", "data_dir", "labels", "mask_threshold")
    parser.add_argument(
        "--test_dir",
        default="",
        metavar="FOLDER",
        help="folder of the test set, whose labels may be missing; images and names that both sets have are reported",
    )
    parser.add_argument(
        "--out_dir",
        default="",
        metavar="FOLDER",
        help="folder for problems.json, fingerprint.json and fingerprint.png (default: none)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        metavar="INT",
        help="number of threads that read files (default: one for each processor)",
    )


def run(args):
    """Check the data; return 1 if there are errors."""
    given = command_line.given_settings(args)
    config = DataConfig(**{**given, "data_name": data_name_of(given)})
    inventories = {"train": take_inventory(partial(list_files, config, "Training", True))}
    if has_split(config.data_dir, "Validation"):
        with suppress(NoSplit):  # the layout finds no such set
            inventories["val"] = take_inventory(partial(list_files, config, "Validation", False))
            inventories["train"].left_out.take_back(folder_of("Validation"))
    if args.test_dir:
        test = dataclasses.replace(config, data_dir=args.test_dir)
        inventories["test"] = take_inventory(partial(list_files, test, "Test", False))
    out_dir = args.out_dir and Path(make_writable_folder(args.out_dir, "--out_dir"))
    check = Check(inventories, max(1, args.jobs))
    for problem in check.problems:
        print(f"{problem.severity:<8}{problem}")
    for name, inventory in inventories.items():
        if str(inventory.left_out):
            print(f"{name} set, {inventory.left_out}")
    report = check.report()
    for row in report["counts"]:
        print(f"{row['problems']:>6} {row['severity']:<8} {row['kind']}")
    print(f"{sum(report['files'].values())} files checked: " + ("errors found" if check.has_errors else "no errors"))
    if out_dir:
        write_text(out_dir / "problems.json", _json(report))
        write_text(out_dir / "fingerprint.json", _json(check.fingerprint()))
        write_atomic(out_dir / "fingerprint.png", fingerprint_png(check))
        print(f"written to {out_dir}")
    return int(check.has_errors)


def _json(tree):
    return json.dumps(tree, indent=1) + "\n"

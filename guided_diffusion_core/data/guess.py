"""Find out the layout of a folder from what is in it, where `--data_name` is not given."""

import sys

from guided_diffusion_core.data.found import nothing_found
from guided_diffusion_core.data.layouts import LAYOUTS
from guided_diffusion_core.data.walk import walk_data
from guided_diffusion_core.errors import found_expected, join_names
from guided_diffusion_core.system.files import require_folder
from guided_diffusion_core.system.processes import launched

EXPECTED = "a folder of images and masks, see docs/data.md"
MOST_SIGNS = 2  # names that a message gives for each layout


def find_layouts(data_dir):
    """Return the layouts that a folder may have: a dict of name -> the names of files and folders that speak for it.

    Layouts that read any picture or any volume count only if no other layout is recognised.
    """
    files = walk_data(data_dir)
    signs = {name: layout.signs(files) for name, layout in LAYOUTS.items() if layout.signs}
    found = {name: names for name, names in signs.items() if names}
    special = {name: names for name, names in found.items() if not LAYOUTS[name].is_general}
    return special or found


def data_name_of(given):
    """Return the `data_name` among the settings on a command line, or that which the folder shows if none is given.

    A line on stderr says what it shows. given: dict of settings by name.
    Raises `UserError` for a folder that is not there, and for one in which no layout or several are recognised.
    """
    if "data_name" in given:
        return given["data_name"]
    data_dir = require_folder(given.get("data_dir", ""), "--data_dir", EXPECTED)
    found = find_layouts(data_dir)
    if len(found) != 1:
        raise _ambiguous(data_dir, found) if found else nothing_found(data_dir, EXPECTED, "file of any layout")
    [(name, signs)] = found.items()
    if launched().rank == 0:
        print(
            f"--data_name {name} ({LAYOUTS[name].summary}), as {data_dir} holds {join_names(signs[:MOST_SIGNS])}",
            file=sys.stderr,
        )
    return name


def _ambiguous(data_dir, found):
    candidates = [f"{name} ({join_names(signs[:MOST_SIGNS])})" for name, signs in found.items()]
    return found_expected(
        "--data_name",
        f"none, and signs of {len(found)} layouts in {data_dir}: {', '.join(candidates)}",
        "one layout",
        f"Give --data_name {' or '.join(found)}, or name the folder of one set.",
    )

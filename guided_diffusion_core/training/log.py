"""The log of a training run: a table on the console, `progress.jsonl` and `progress.csv`."""

import csv
import io
import json
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from guided_diffusion_core.system.files import write_atomic, writing
from guided_diffusion_core.training.folder import LOG, TABLE

COLUMN_WIDTH = 11


class RunLog:
    """A log whose lines are the means of the values that were recorded since the line before.

    out_dir: folder of the run.
    done:    number of steps so far; the lines of an existing log stay up to this step.
    late:    values by name that are added to the line of step `done`, if there is one.

    The table and the CSV have the columns of the first line, with empty cells for missing values. Raises `UserError` if
    a file cannot be written.
    """

    def __init__(self, out_dir, done=0, late=None):
        self.jsonl_path = Path(out_dir) / LOG
        self.csv_path = Path(out_dir) / TABLE
        self._titled = False
        self._recorded = []
        earlier = read_log(out_dir, done)
        if late and earlier and earlier[-1]["step"] == done:
            earlier[-1] |= late
        self._columns = list(earlier[0]) if earlier else None
        titles = [self._columns] if earlier else []
        rows = titles + [[line.get(name) for name in self._columns] for line in earlier]
        # Whole files first, then lines at their ends: a kill at any moment leaves the old log or the new one.
        write_atomic(self.jsonl_path, "".join(map(_json_line, earlier)).encode())
        write_atomic(self.csv_path, "".join(map(_csv_row, rows)).encode())
        with writing(self.jsonl_path):
            self._jsonl = open(self.jsonl_path, "a", encoding="utf-8")
            self._csv_file = open(self.csv_path, "a", newline="", encoding="utf-8")

    def record(self, values):
        """Add the values of one step, a dict name -> float."""
        self._recorded.append(values)

    def write(self, **exact):
        """Write a line, and return it: the `exact` values as they are, then the means of the recorded values."""
        steps = len(self._recorded)
        means = {name: sum(values[name] for values in self._recorded) / steps for name in self._recorded[0]}
        line = {**exact, **means}
        self._recorded = []
        columns = self._columns or list(line)  # those of the first line, which may be from before a resume
        if not self._titled:
            tqdm.write(" ".join(name.rjust(COLUMN_WIDTH) for name in columns))
            self._titled = True
        tqdm.write(" ".join(_shown(line.get(name)).rjust(COLUMN_WIDTH) for name in columns))
        self._put(line)
        return line

    def _put(self, line):
        """Append a line to both files. Raises `NoRoom` on a full disk."""
        titles = ""
        if self._columns is None:
            self._columns = list(line)
            titles = _csv_row(self._columns)
        for path, file, text in (
            (self.jsonl_path, self._jsonl, _json_line(line)),
            (self.csv_path, self._csv_file, titles + _csv_row([line.get(name) for name in self._columns])),
        ):
            with writing(path):
                file.write(text)
                file.flush()  # a killed run then loses no line, and the files can be watched during the training

    def close(self):
        """Close the files."""
        for file in (self._jsonl, self._csv_file):
            with suppress(OSError):  # of a line that has been reported already: a full disk
                file.close()


def read_log(out_dir, done):
    """Return the lines of a training's log up to step `done`, a list of dicts; [] without a log."""
    path = Path(out_dir) / LOG
    if not done or not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break  # the run was interrupted while it wrote this line
    return [line for line in lines if line["step"] <= done]


def seconds_so_far(folder, step):
    """Return the seconds that the training of a `RunFolder` has taken up to a step, by its log; 0 for a new one."""
    lines = read_log(folder.origin(), step) if folder.origin() else []
    return lines[-1]["seconds"] if lines else 0.0


def _json_line(line):
    return json.dumps(line) + "\n"


def _csv_row(cells):
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()


def _shown(value):
    """Format a value for the table on the console."""
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)

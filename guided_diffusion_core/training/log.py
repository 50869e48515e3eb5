"""The log of a training run: a table on the console, `progress.jsonl` and `progress.csv`."""

import csv
import json
from pathlib import Path

from tqdm import tqdm

from guided_diffusion_core.errors import found_expected

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
        self.jsonl_path = Path(out_dir) / "progress.jsonl"
        self.csv_path = Path(out_dir) / "progress.csv"
        self._columns = None
        self._titled = False
        self._recorded = []
        earlier = self._earlier(done)
        if late and earlier and earlier[-1]["step"] == done:
            earlier[-1] |= late
        try:
            self._jsonl = open(self.jsonl_path, "w", encoding="utf-8")
            self._csv_file = open(self.csv_path, "w", newline="", encoding="utf-8")
        except OSError as error:
            raise found_expected(
                self.jsonl_path, error.strerror, "a file that can be written", "Choose another --out_dir."
            ) from error
        self._csv = csv.writer(self._csv_file)
        for line in earlier:
            self._put(line)

    def _earlier(self, done):
        """Read the lines of an existing log up to step `done`."""
        if not done or not self.jsonl_path.is_file():
            return []
        lines = []
        for text in self.jsonl_path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break  # the run was interrupted while it wrote this line
        return [line for line in lines if line["step"] <= done]

    def record(self, values):
        """Add the values of one step, a dict name -> float."""
        self._recorded.append(values)

    def write(self, **exact):
        """Write a line: the `exact` values as they are, then the means of the recorded values."""
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

    def _put(self, line):
        """Write a line to both files."""
        if self._columns is None:
            self._columns = list(line)
            self._csv.writerow(self._columns)
        self._jsonl.write(json.dumps(line) + "\n")
        self._csv.writerow([line.get(name) for name in self._columns])
        # A killed run then loses no line, and the files can be watched during the training.
        self._jsonl.flush()
        self._csv_file.flush()

    def close(self):
        """Close the files."""
        self._jsonl.close()
        self._csv_file.close()


def _shown(value):
    """Format a value for the table on the console."""
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)

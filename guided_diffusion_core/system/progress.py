"""The progress of long work: a bar on a terminal, lines in a file or a pipe."""

import sys

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60
_UP = "\x1b[A"  # with which tqdm goes up to the line of an outer bar


class _Lines:
    """A text file that gets each state of a bar as a line of its own."""

    def __init__(self, file):
        self.file = file

    def write(self, text):
        """Write the state of a bar, which comes between carriage returns, spaces and moves of the cursor."""
        state = text.replace(_UP, "").strip()
        if state:
            self.file.write(f"{state}\n")

    def flush(self):
        """Flush the file."""
        self.file.flush()


def progress(iterable=None, **keywords):
    """Return a `tqdm` of the keywords. If the standard error is no terminal, it writes a line now and then."""
    if sys.stderr.isatty():
        return tqdm(iterable, dynamic_ncols=True, **keywords)
    return tqdm(
        iterable,
        file=_Lines(sys.stderr),
        mininterval=SECONDS_BETWEEN_LINES,
        maxinterval=SECONDS_BETWEEN_LINES,
        miniters=1,
        bar_format="{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} passed, {remaining} left",
        **keywords,
    )


class LateProgress:
    """A bar that appears with its first update.

    The first part of the work is left out of the time that the bar foresees: Jittor compiles in it, and prints.
    keywords: those of `progress`; `initial` is the number of parts that are done before.
    """

    def __init__(self, initial=0, **keywords):
        self._initial = initial
        self._keywords = keywords
        self._bar = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def update(self, count):
        """Count some parts of the work."""
        if self._bar is None:
            # no smoothing: the mean over all parts foresees the whole better than the last ones
            self._bar = progress(initial=self._initial + count, smoothing=0, **self._keywords)
        else:
            self._bar.update(count)

    def hide(self):
        """Remove the bar from the terminal until the next update."""
        if self._bar is not None:
            self._bar.clear()

    def close(self):
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


def duration(seconds):
    """Return a time as a text of two units, such as "1 h 20 min"."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes:.0f} min"
    hours, minutes = divmod(round(minutes), 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours / 24:.1f} days"

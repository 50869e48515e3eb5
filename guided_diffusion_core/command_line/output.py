"""The output of a command, without control characters."""

import contextlib
import sys

from guided_diffusion_core.errors import printable

_BAR = "\r"  # with which a progress bar of tqdm begins
_BETWEEN_BARS = "\n\x1b[A"  # characters with which it goes to the line of another bar


class PrintableOutput:
    """A text stream that writes to another one what `errors.printable` leaves of the text.

    Ends of lines and tabs stay, and progress bars as they are.
    """

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        """Write the text; return its length, as streams do."""
        is_bar = text.startswith(_BAR) or not text.strip(_BETWEEN_BARS)
        self._stream.write(text if is_bar else printable(text, keep="\n\t"))
        return len(text)

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextlib.contextmanager
def printable_output():
    """Escape control characters in what the block prints: names of files and labels may come from anyone."""
    with (
        contextlib.redirect_stdout(PrintableOutput(sys.stdout)),
        contextlib.redirect_stderr(PrintableOutput(sys.stderr)),
    ):
        yield

"""The standard output of a command, without control characters."""

from guided_diffusion_core.errors import printable


class PrintableOutput:
    """A text stream that writes to another one what `errors.printable` leaves of the text.

    Ends of lines and tabs stay: the commands themselves print them.
    """

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        """Write the text; return its length, as streams do."""
        self._stream.write(printable(text, keep="\n\t"))
        return len(text)

    def __getattr__(self, name):
        return getattr(self._stream, name)

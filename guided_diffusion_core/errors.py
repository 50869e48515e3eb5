"""The one kind of error that a user of the command line is meant to see."""

import re
import shlex
from contextlib import contextmanager
from contextvars import ContextVar

MAX_NAMES = 8  # names that an error spells out before it only counts the rest
LONGEST_NAME = 300  # characters of a name in an error
# Control characters, halves of pairs (the bytes of a file name that is no UTF-8), ends of lines, and marks that turn
# the direction of writing: in the name of a file or of a tensor they could make a terminal show something else.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")
_COLLECTED = ContextVar("collected", default=None)  # the list of the innermost `collecting`; None outside


class UserError(Exception):
    """An error in something that the user gave: a file, a folder or a flag.

    The message is one clear sentence or a short list. It says which file or flag is wrong, what was
    found, what was expected and how to fix it. Command lines print it without a traceback and exit
    with code 2.

    parts: (where, found, expected, fix) as texts if `found_expected` made the error, otherwise None.
    each:  the single errors that this one summarises.
    """

    parts = None
    each = ()

    def __init__(self, message):
        super().__init__(printable(message, keep="\n\t"))


def printable(text, keep=""):
    """Return a text with its control characters written as escapes, such as "\\x1b".

    keep: characters that stay as they are.
    """

    def escaped(match):
        character = match[0]
        return character if character in keep else character.encode("unicode_escape").decode()

    return _UNPRINTABLE.sub(escaped, str(text))


def command_text(*words):
    """Return words as one line that a shell takes as these words again: names with spaces are quoted."""
    return shlex.join(str(word) for word in words)


def found_expected(where, found, expected, fix, kind=UserError):
    """Return a `UserError` in the common form "where: found X; expected Y. Fix."

    where:    the file or flag that is wrong.
    found:    what is there now.
    expected: what should be there.
    fix:      what the user can do, as an imperative sentence.
    kind:     `UserError`, or a class of it.
    """
    name = printable(where)
    error = kind(f"{name}: found {found}; expected {expected}. {fix}")
    error.parts = (name, *(printable(part, keep="\n\t") for part in (found, expected, fix)))
    return error


@contextmanager
def collecting():
    """Make `report` collect errors instead of raising the first one; yields the list that they go to."""
    problems = []
    token = _COLLECTED.set(problems)
    try:
        yield problems
    finally:
        _COLLECTED.reset(token)


def report(error, each=None):
    """Raise a `UserError`, or add it to the list of `collecting`, after which the caller goes on as well as it can.

    each: the single errors that `error` summarises; they are collected in its place.
    """
    problems = _COLLECTED.get()
    if problems is None:
        error.each = tuple(each or ())
        raise error
    problems.extend(each or [error])


def join_names(names):
    """Return the first names as one line, followed by the number of those left out."""
    names = list(names)
    line = ", ".join(_shortened(printable(name)) for name in names[:MAX_NAMES])
    rest = len(names) - MAX_NAMES
    return f"{line} and {rest} more" if rest > 0 else line


def _shortened(name):
    """Return a name without its middle if it is longer than any that people give."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}...{name[-LONGEST_NAME // 2 :]}"

"""The one kind of error that a user of the command line is meant to see."""

from contextlib import contextmanager
from contextvars import ContextVar

MAX_NAMES = 8  # names that an error spells out before it only counts the rest
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


def found_expected(where, found, expected, fix, kind=UserError):
    """Return a `UserError` in the common form "where: found X; expected Y. Fix."

    where:    the file or flag that is wrong.
    found:    what is there now.
    expected: what should be there.
    fix:      what the user can do, as an imperative sentence.
    kind:     `UserError`, or a class of it.
    """
    error = kind(f"{where}: found {found}; expected {expected}. {fix}")
    error.parts = (str(where), str(found), str(expected), str(fix))
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
    line = ", ".join(str(name) for name in names[:MAX_NAMES])
    rest = len(names) - MAX_NAMES
    return f"{line} and {rest} more" if rest > 0 else line

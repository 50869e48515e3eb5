"""The one error that a user of the command lines is meant to see."""

from contextlib import contextmanager
from contextvars import ContextVar

LISTED_NAMES = 8  # names that an error lists before it says how many more there are
_COLLECTED = ContextVar("collected", default=None)  # the list of `collecting`, None outside


class UserError(Exception):
    """Something that the user gave is wrong: a file, a folder or a flag.

    The message is one clear sentence or a short list: which file or flag, what was found,
    what was expected and how to mend it. Command lines print it without a traceback and exit
    with code 2.

    parts: (where, found, expected, mend) as texts, of an error made by `found_expected`; else None.
    """

    parts = None


def found_expected(where, found, expected, mend):
    """Return the `UserError` of the house's one form.

    where:    the file or flag that is wrong.
    found:    what is there now.
    expected: what should be there.
    mend:     what the user can do, an imperative sentence.
    """
    error = UserError(f"{where}: found {found}; expected {expected}. {mend}")
    error.parts = tuple(map(str, (where, found, expected, mend)))
    return error


@contextmanager
def collecting():
    """Inside, `report` appends to the list that this yields and returns, so that all problems come to light."""
    problems = []
    token = _COLLECTED.set(problems)
    try:
        yield problems
    finally:
        _COLLECTED.reset(token)


def report(error, each=None):
    """Raise a `UserError`, or inside `collecting` keep it; the caller then goes on as well as it can.

    each: the single errors that `error` sums up, which are kept in its place.
    """
    problems = _COLLECTED.get()
    if problems is None:
        raise error
    problems.extend(each or [error])


def listed(names):
    """The first few names in one line, and how many more there are."""
    names = list(names)
    shown = ", ".join(str(name) for name in names[:LISTED_NAMES])
    return shown + (f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else "")

"""Settings as dataclass fields: a default with the help text, choices and range of its command-line flag."""

import dataclasses


def option(default, help, choices=None, low=None, below=None):
    """Return a dataclass field for one setting.

    help:       text of its command-line flag; "{layouts}" in it stands for the names of the data layouts.
    choices:    the values that it may have, None for any.
    low, below: smallest value, and the value that it must stay below; None for no such bound.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "low": low, "below": below})

"""Settings as dataclass fields: a default with the help text, choices and range of its command-line flag."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may have; None for no such bound.

    low, high:    smallest and largest value.
    above, below: values that the setting must stay above and below.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def contains(self, value):
        """Return whether a number is in the range; NaN never is, unless there is no bound."""
        too_small = self.low is not None and not value >= self.low
        too_large = self.high is not None and not value <= self.high
        not_above = self.above is not None and not value > self.above
        not_below = self.below is not None and not value < self.below
        return not (too_small or too_large or not_above or not_below)

    def __str__(self):
        """Return the range in words, such as "at least 1" or "from 0 to below 1"; "" without a bound."""
        if self.low is None:
            words = [f"above {self.above}" if self.above is not None else ""]
            words.append(f"at most {self.high}" if self.high is not None else "")
            words.append(f"below {self.below}" if self.below is not None else "")
            return " and ".join(filter(None, words))
        if self.high is not None:
            return f"from {self.low} to {self.high}"
        if self.below is not None:
            return f"from {self.low} to below {self.below}"
        return f"at least {self.low}"


def option(default, help, choices=None, low=None, high=None, above=None, below=None, usual=None, path=False):
    """Return a dataclass field for one setting.

    help:       text of its command-line flag; "{layouts}" in it stands for the names of the data layouts.
                The flag's help adds the range and the defaults.
    choices:    the values that it may have, None for any.
    low, high, above, below: bounds of its value, see `Range`; None for no such bound.
    usual:      what the commands take without the flag, in words, where it is not the default.
    path:       True for a path on the user's machine.
    """
    bounds = Range(low, high, above, below)
    metadata = {"help": help, "choices": choices, "range": bounds, "usual": usual, "path": path}
    return dataclasses.field(default=default, metadata=metadata)

"""The outcome of the comparison of one case: rows for its tensors, problems of its structure, a state."""

import math
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase

from parity.accepted_gaps import ACCEPTED_GAPS
from parity.dump import SectionKey

AGREE = "agree"
DIVERGED = "diverged"
INCOMPLETE = "incomplete"


@dataclass
class Row:
    """One compared entry. The fields are explained at `Entry` and `Judgement`; they are keys of result.json."""

    rung: str
    site: str
    ratio: float
    error: float
    own: float
    ulps: tuple
    cosine: float
    problem: str

    @property
    def diverged(self):
        """True if the entry breaks the rule; a ratio of NaN does."""
        return not self.ratio <= 1.0

    def to_dict(self):
        """Return the row as JSON values, with numbers rounded to four digits (the cosine to eight)."""
        tree = asdict(self)
        for name in ("ratio", "error", "own"):
            tree[name] = _rounded(tree[name])
        tree["cosine"] = float(f"{self.cosine:.8g}")
        tree["ulps"] = [_rounded(value) for value in self.ulps]
        return tree


def _rounded(value):
    return float(f"{value:.4g}")


@dataclass
class Verdict(SectionKey):
    """The outcome of one case in one precision.

    suite:    name of the suite that the case belongs to.
    rows:     every compared entry, in the order of computation.
    problems: texts about what has no counterpart or could not be compared.
    missing:  texts about sections that were not recorded.
    gaps:     labels of the rows of `ACCEPTED_GAPS` that were needed.
    """

    suite: str = ""
    rows: list = field(default_factory=list)
    problems: list = field(default_factory=list)
    missing: list = field(default_factory=list)
    gaps: set = field(default_factory=set)

    @property
    def first(self):
        """The first row that breaks the rule, or None."""
        return next((row for row in self.rows if row.diverged), None)

    @property
    def worst(self):
        """The row with the largest ratio, or None; NaN counts as infinite."""
        return max(self.rows, key=lambda row: math.inf if math.isnan(row.ratio) else row.ratio, default=None)

    @property
    def state(self):
        """AGREE, DIVERGED or INCOMPLETE."""
        if self.missing:
            return INCOMPLETE
        return DIVERGED if self.problems or self.first else AGREE

    def accepts(self, kind, name):
        """Return True if `ACCEPTED_GAPS` covers a gap, and note the rows that do."""
        labels = set()
        for row in ACCEPTED_GAPS:
            same_kind = row.suite == self.suite and row.kind == kind
            if same_kind and fnmatchcase(self.case, row.case) and fnmatchcase(name, row.name):
                labels.add(row.label)
        self.gaps |= labels
        return bool(labels)

    def to_dict(self):
        """Return the verdict as JSON values."""
        return {
            "case": self.case,
            "precision": self.precision,
            "variant": self.variant,
            "state": self.state,
            "first": self.first and self.first.to_dict(),
            "worst": self.worst and self.worst.to_dict(),
            "problems": self.problems,
            "missing": self.missing,
            "rows": [row.to_dict() for row in self.rows],
        }

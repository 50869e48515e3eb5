"""Comparing two dumps: every tensor by the rule, and everything that has no partner is a failure.

Imports no framework: the dumps may come from other machines.
"""

import math
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.evaluation.metrics import count
from parity.accepted_gaps import ACCEPTED_GAPS
from parity.dump import MOVED, PLAIN, Keyed
from parity.protocol import PRECISIONS
from parity.rule import Judgement, allowance, distance, judge, judge_exact, judge_mask, norms

AGREE = "agree"
DIVERGED = "diverged"
INCOMPLETE = "incomplete"
# Rungs whose tensors agree to the bit, and those that are not of the precision of the run.
EXACT = ("weight", "table", "learning rate", "image", "truth")
OF_FILES = ("table", "learning rate", "loss", "image", "probability", "uncertainty", "mask", "truth", "score")
# Rungs in which a tensor may cancel to nothing beside others of its kind.
KINDS = ("gradient", "input gradient", "output gradient", "first moment", "second moment")


@dataclass
class Row:
    """One compared entry; its fields as of `Entry` and `Judgement`."""

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
        """Whether the entry breaks the rule."""
        return not self.ratio <= 1.0

    def to_dict(self):
        """The row as JSON values, numbers to four digits (the cosine to eight)."""
        tree = asdict(self)
        for name in ("ratio", "error", "own"):
            tree[name] = float(f"{tree[name]:.4g}")
        return {**tree, "cosine": float(f"{self.cosine:.8g}"), "ulps": [float(f"{value:.4g}") for value in self.ulps]}


@dataclass
class Verdict(Keyed):
    """One case in one precision.

    suite:    of the case.
    rows:     every compared entry, in the order of computation.
    problems: what has no partner or could not be compared, as text.
    missing:  sections that were not recorded, as text.
    gaps:     names of the rows of `ACCEPTED_GAPS` that were needed.
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
        """The row with the largest ratio, or None."""
        return max(self.rows, key=lambda row: row.ratio if row.ratio == row.ratio else math.inf, default=None)

    @property
    def state(self):
        """AGREE, DIVERGED or INCOMPLETE."""
        if self.missing:
            return INCOMPLETE
        return DIVERGED if self.problems or self.first else AGREE

    def to_dict(self):
        """The verdict as JSON values."""
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


def compare_dumps(reference, candidate, cases=None, detail=True, progress=lambda verdict: None):
    """A list of `Verdict`, one for each case and precision that the candidate's cases ask for.

    reference, candidate: `Dump`. cases: `Case` objects; None: all that either dump names, in every
    precision of the candidate. progress: called with each verdict.
    Raises `UserError` if no case is left to compare.
    """
    wanted = (
        [(case.name, precision) for case in cases for precision in case.precisions]
        if cases
        else [
            (name, precision)
            for name in dict.fromkeys(reference.cases() + candidate.cases())
            for precision in PRECISIONS
            if any((name, precision, PLAIN) in dump.files for dump in (candidate, reference))
            and ((name, precision, PLAIN) in candidate.files or not _has_case(candidate, name))
        ]
    )
    if not wanted:
        raise found_expected(candidate.folder, "no case", "at least one recorded case", "Run a case first.")
    verdicts = []
    for name, precision in wanted:
        verdicts.append(compare_case(reference, candidate, name, precision, detail=detail))
        progress(verdicts[-1])
    return verdicts


def _has_case(dump, name):
    return any(case == name for case, _, _ in dump.files)


def compare_case(reference, candidate, name, precision, variant=PLAIN, detail=True):
    """The `Verdict` of one case in one precision; `variant` LAYERS compares every layer alone."""
    verdict = Verdict(name, precision, variant, reference.flags.get("suite", ""))
    ours = candidate.load(name, precision, variant)
    beside = reference.load(name, precision, variant)
    truth = beside if precision == "float64" else reference.load(name, "float64", variant)
    for section, what in (
        (ours, f"{candidate.backend} in {precision}"),
        (beside, f"{reference.backend} in {precision}"),
        (truth, f"{reference.backend} in float64"),
    ):
        if section is None and f"{name}: no record of {what}" not in verdict.missing:
            verdict.missing.append(f"{name}: no record of {what}")
    own = _own_errors(reference, name, variant, verdict)
    if verdict.missing:
        return verdict
    _require_content(verdict, ours, candidate)
    _require_content(verdict, beside, reference)
    _compare_structure(verdict, beside, ours)
    _compare_entries(verdict, beside, ours, truth, own, detail)
    return verdict


class OwnErrors:
    """The reference's own error by entry.

    plain: its float32 `Section`. moved: precision -> sections of the variants in `MOVED`.
    """

    def __init__(self, plain, moved):
        self._plain = plain
        self._keys = plain.by_key()
        self._moved = moved

    def of(self, key, truth):
        """ "float32" and "float64" -> two norms, or None if a run lacks the entry. truth: float64 array."""
        runs = [section for sections in self._moved.values() for section in sections]
        if key not in self._keys or any(key not in section.errors for section in runs):
            return None
        found = {
            precision: [section.errors[key] for section in sections] for precision, sections in self._moved.items()
        }
        found["float32"].append(distance(truth, self._plain.array(self._keys[key])))
        return {precision: np.max(norms, axis=0) if norms else np.zeros(2) for precision, norms in found.items()}


def _own_errors(reference, name, variant, verdict):
    """The `OwnErrors` of a case or of its layers alone: no single run, whose error may be small by luck, decides."""
    plain = reference.load(name, "float32", variant)
    moved = {precision: [reference.load(name, precision, kind) for kind in MOVED[variant]] for precision in PRECISIONS}
    if plain is None or None in moved["float32"]:
        verdict.missing.append(
            f"{name}: no record of {reference.backend}'s own error in float32 "
            f"(variants: {'; '.join((variant, *MOVED[variant]))})"
        )
        return None
    return OwnErrors(
        plain, {precision: [section for section in found if section] for precision, found in moved.items()}
    )


def _require_content(verdict, section, dump):
    """Comparing nothing with nothing would agree."""
    values = [array for array in section.tensors.values() if array.size]
    if not section.entries or not any(np.any(array) for array in values):
        raise UserError(
            f"{dump.folder}: {verdict.case} in {section.precision}: found "
            f"{'nothing but zeros' if section.entries else 'no entry'}; expected what the case computes. "
            "Record it again."
        )


def accepted(verdict, kind, name):
    """Whether `ACCEPTED_GAPS` covers a gap; the verdict notes the row."""
    rows = [
        row
        for row in ACCEPTED_GAPS
        if row.suite == verdict.suite
        and row.kind == kind
        and fnmatchcase(verdict.case, row.case)
        and fnmatchcase(name, row.name)
    ]
    verdict.gaps.update(row.label for row in rows)
    return bool(rows)


def _compare_structure(verdict, beside, ours):
    """Modules, draws, calls, types and the children's own checks."""
    for section, who in ((beside, "reference"), (ours, "candidate")):
        verdict.problems += [
            f"module {name} is never called in the {who}"
            for name in section.uncalled
            if not accepted(verdict, "uncalled", name)
        ]
        verdict.problems += [
            f"{who}: the check {name!r} failed" for name, passed in section.checks.items() if not passed
        ]
    _compare_names(verdict, "module", list(beside.types), list(ours.types))
    _compare_draws(verdict, beside.draws, ours.draws)
    _compare_names(verdict, "call", list(beside.arguments), list(ours.arguments))
    verdict.problems += [
        f"call {place} has other arguments"
        for place, outline in beside.arguments.items()
        if place in ours.arguments and ours.arguments[place] != outline
    ]
    if beside.contexts != ours.contexts:
        verdict.problems.append("forward passes in other contexts")


def _compare_names(verdict, what, expected, found):
    known = set(expected)
    present = set(found)
    verdict.problems += [f"{what} {name} is missing in the candidate" for name in expected if name not in present]
    verdict.problems += [f"{what} {name} is not in the reference" for name in found if name not in known]
    if known == present and expected != found:
        at = next(k for k, pair in enumerate(zip(expected, found)) if pair[0] != pair[1])
        verdict.problems.append(f"{what}s in another order, from {found[at]} on (reference: {expected[at]})")


def _compare_draws(verdict, expected, found):
    """The noise tape: the same draws at the same places, none missing, none left over."""
    if expected == found:
        return
    at = next((k for k, pair in enumerate(zip(expected, found)) if pair[0] != pair[1]), min(len(expected), len(found)))
    known = set(map(tuple, expected))
    present = set(map(tuple, found))
    missing = known - present
    extra = present - known
    kind = (
        "in another order"
        if not missing and not extra and len(expected) == len(found)
        else (f"{len(missing)} missing, {len(extra)} more than in the reference")
    )
    place = (found if at < len(found) else expected)[at]
    verdict.problems.append(f"noise tape: draws {kind}; first at number {at}: {_place(place)}")


def _place(draw):
    site, step, case, member, _ = draw
    return f"{site}, step {step}, case {case}, member {member}"


def _compare_entries(verdict, beside, ours, truth, own, detail):
    ours_by_key = ours.by_key()
    truth_by_key = truth.by_key()
    _compare_names(verdict, "tensor", [entry.key for entry in beside.entries], list(ours_by_key))
    scales = _kind_scales(truth)
    judged = {}
    for entry in beside.entries:
        partner = ours_by_key.get(entry.key)
        if partner is None:
            continue
        if (partner.dtype, partner.shape) != (entry.dtype, entry.shape):
            verdict.problems.append(
                f"{entry.key}: {partner.dtype} {list(partner.shape)}, "
                f"the reference has {entry.dtype} {list(entry.shape)}"
            )
            continue
        pair = (entry.rung, entry.tensor, partner.tensor)
        if _zero_in_both(beside.array(entry), ours.array(partner)) and not accepted(verdict, "all zero", entry.key):
            found = Judgement(math.inf, problem="all zero in both")
        else:
            if pair not in judged:
                judged[pair] = _judge(
                    verdict,
                    entry,
                    beside,
                    ours.array(partner),
                    ours,
                    truth,
                    truth_by_key,
                    own,
                    scales.get(entry.rung, 0.0),
                    detail,
                )
            found = judged[pair]
        verdict.rows.append(
            Row(entry.rung, entry.site, found.ratio, found.error, found.own, found.ulps, found.cosine, found.problem)
        )


def _zero_in_both(expected, array):
    return expected.size > 0 and not np.any(expected) and not np.any(array)


def _kind_scales(truth):
    """Largest RMS among the tensors of each rung in which tensors may cancel."""
    scales = {}
    for entry in truth.entries:
        if entry.rung in KINDS:
            scales[entry.rung] = max(scales.get(entry.rung, 0.0), norms(truth.array(entry))[0])
    return scales


def _judge(verdict, entry, beside, array, ours, truth, truth_by_key, own, kind_scale, detail):
    """The `Judgement` of one entry."""
    expected = beside.array(entry)
    floating = expected.dtype.kind == "f"
    if floating and entry.rung not in OF_FILES and entry.dtype != verdict.precision:
        return Judgement(math.inf, problem=f"{entry.dtype} in a run in {verdict.precision}")
    if entry.rung == "mask":
        return _judge_mask(entry, expected, array, truth, truth_by_key, own)
    if entry.rung == "score":
        return _judge_score(entry, array, ours)
    if entry.rung in EXACT or not floating:
        return judge_exact(array, expected)
    if entry.key not in truth_by_key:
        return Judgement(math.inf, problem="not in the reference's float64 run")
    exact = truth.array(truth_by_key[entry.key])
    errors = own.of(entry.key, exact)
    if errors is None:
        return Judgement(math.inf, problem="not in every run of the reference")
    return judge(array, expected, exact, errors, verdict.precision, kind_scale, detail)


def _judge_mask(entry, expected, array, truth, truth_by_key, own):
    key = f"probability/{entry.site}"
    probability = truth.array(truth_by_key[key])
    allowed, _ = allowance(probability, own.of(key, probability), "float32")
    return judge_mask(array, expected, probability, allowed[1], float(truth.array(truth_by_key["table/threshold"])))


def _judge_score(entry, array, ours):
    """A score follows from the mask beside it; that masks agree is the mask's own row."""
    case, metric = entry.site.rsplit(" ", 1)
    entries = ours.by_key()
    counts = count(ours.array(entries[f"mask/{case}"]), ours.array(entries[f"truth/{case}"]))
    exact = float(array) == getattr(counts, metric)
    return Judgement(0.0 if exact else math.inf, problem="" if exact else "does not follow from the mask")

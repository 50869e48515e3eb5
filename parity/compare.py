"""Comparison of two dumps: every tensor by the rule; whatever has no counterpart is a failure.

This module imports no framework: the dumps may come from other machines.
"""

import math

import numpy as np

from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.evaluation.metrics import count
from parity.dump import PERTURBED, PLAIN
from parity.protocol import PRECISIONS
from parity.rule import Judgement, allowance, distance, judge, judge_exact, judge_mask, norms
from parity.structure import compare_names, compare_structure
from parity.verdict import Row, Verdict

# Rungs whose tensors have to agree to the bit.
EXACT = ("weight", "table", "learning rate", "image", "truth")
# Rungs whose tensors are written to files and have a precision of their own, whatever the precision of the run.
OF_FILES = ("table", "learning rate", "loss", "image", "probability", "uncertainty", "mask", "truth", "score")
# Rungs in which a tensor may cancel to nothing while others of the same rung do not.
CANCELLING = ("gradient", "input gradient", "output gradient", "first moment", "second moment")


def compare_dumps(reference, candidate, cases=None, detail=True, progress=lambda verdict: None):
    """Compare two `Dump`s and return a list of `Verdict`, one per case and precision.

    cases:    `Case` objects; None: all cases of either dump, in every precision of the candidate.
    detail:   measure ulps and cosines too. progress: called with each verdict.
    Raises `UserError` if there is no case to compare.
    """
    if cases:
        wanted = [(case.name, precision) for case in cases for precision in case.precisions]
    else:
        wanted = _recorded_cases(reference, candidate)
    if not wanted:
        raise found_expected(candidate.folder, "no case", "at least one recorded case", "Run a case first.")
    verdicts = []
    for name, precision in wanted:
        verdict = compare_case(reference, candidate, name, precision, detail=detail)
        verdicts.append(verdict)
        progress(verdict)
    return verdicts


def _recorded_cases(reference, candidate):
    """Return the (case, precision) pairs of the candidate; a case that only the reference has counts as well."""
    wanted = []
    for name in dict.fromkeys(reference.cases() + candidate.cases()):
        source = candidate if name in candidate.cases() else reference
        wanted += [(name, precision) for precision in PRECISIONS if (name, precision, PLAIN) in source.files]
    return wanted


def compare_case(reference, candidate, name, precision, variant=PLAIN, detail=True):
    """Compare one case in one precision and return its `Verdict`.

    variant: PLAIN, or LAYERS to compare every layer run by itself.
    """
    verdict = Verdict(name, precision, variant, reference.flags.get("suite", ""))
    ours = candidate.load(name, precision, variant)
    theirs = reference.load(name, precision, variant)
    truth = theirs if precision == "float64" else reference.load(name, "float64", variant)
    for section, run in (
        (ours, f"{candidate.backend} in {precision}"),
        (theirs, f"{reference.backend} in {precision}"),
        (truth, f"{reference.backend} in float64"),
    ):
        text = f"{name}: no record of {run}"
        if section is None and text not in verdict.missing:
            verdict.missing.append(text)
    errors = _reference_errors(reference, name, variant, verdict)
    if verdict.missing:
        return verdict
    _require_content(verdict, ours, candidate)
    _require_content(verdict, theirs, reference)
    compare_structure(verdict, theirs, ours)
    _EntryComparison(verdict, theirs, ours, truth, errors, detail).run()
    return verdict


class ReferenceErrors:
    """The reference's own rounding error, by entry.

    plain:     its plain float32 `Section`.
    perturbed: precision -> sections of the variants in `PERTURBED`.
    """

    def __init__(self, plain, perturbed):
        self._plain = plain
        self._entries = plain.by_key()
        self._perturbed = perturbed

    def of(self, key, truth):
        """Return {"float32": norms, "float64": norms} of an entry; None if a run does not have it.

        The largest error over the runs counts, for each norm by itself. truth: float64 array of the entry.
        """
        runs = [section for sections in self._perturbed.values() for section in sections]
        if key not in self._entries or any(key not in section.errors for section in runs):
            return None
        errors = {}
        for precision, sections in self._perturbed.items():
            errors[precision] = [section.errors[key] for section in sections]
        errors["float32"].append(distance(truth, self._plain.array(self._entries[key])))
        return {precision: np.max(found, axis=0) if found else np.zeros(2) for precision, found in errors.items()}


def _reference_errors(reference, name, variant, verdict):
    """Read the `ReferenceErrors` of a case; if runs are missing, note it in the verdict and return None.

    Several runs are needed, because the error of a single run may be small by luck.
    """
    plain = reference.load(name, "float32", variant)
    perturbed = {}
    for precision in PRECISIONS:
        perturbed[precision] = [reference.load(name, precision, kind) for kind in PERTURBED[variant]]
    if plain is None or None in perturbed["float32"]:
        verdict.missing.append(
            f"{name}: no record of {reference.backend}'s own error in float32 "
            f"(variants: {'; '.join((variant, *PERTURBED[variant]))})"
        )
        return None
    # runs in float64 are optional: not every case has them
    recorded = {precision: [run for run in runs if run] for precision, runs in perturbed.items()}
    return ReferenceErrors(plain, recorded)


def _require_content(verdict, section, dump):
    """Raise `UserError` for a section without numbers: nothing would agree with nothing."""
    has_numbers = any(np.any(array) for array in section.tensors.values())
    if not section.entries or not has_numbers:
        found = "nothing but zeros" if section.entries else "no entry"
        raise UserError(
            f"{dump.folder}: {verdict.case} in {section.precision}: found {found}; expected the numbers of the case. "
            "Record it again."
        )


class _EntryComparison:
    """Comparison of all entries of two sections; `run` adds the rows to the verdict.

    theirs: the reference's `Section` in the precision of the verdict. ours: the candidate's.
    truth:  the reference's in float64. errors: `ReferenceErrors`. detail: measure ulps and cosines too.
    """

    def __init__(self, verdict, theirs, ours, truth, errors, detail):
        self.verdict = verdict
        self.theirs = theirs
        self.ours = ours
        self.truth = truth
        self.errors = errors
        self.detail = detail
        self.our_entries = ours.by_key()
        self.truth_entries = truth.by_key()
        self.scales = _rung_scales(truth)
        self.judged = {}  # entries that share their tensors share the judgement

    def run(self):
        expected = [entry.key for entry in self.theirs.entries]
        compare_names(self.verdict, "tensor", expected, list(self.our_entries))
        for entry in self.theirs.entries:
            partner = self.our_entries.get(entry.key)
            if partner is None:
                continue
            if (partner.dtype, partner.shape) != (entry.dtype, entry.shape):
                self.verdict.problems.append(
                    f"{entry.key}: {partner.dtype} {list(partner.shape)}, "
                    f"the reference has {entry.dtype} {list(entry.shape)}"
                )
                continue
            found = self._judgement(entry, partner)
            self.verdict.rows.append(
                Row(
                    entry.rung,
                    entry.site,
                    found.ratio,
                    found.error,
                    found.own,
                    found.ulps,
                    found.cosine,
                    found.problem,
                )
            )

    def _judgement(self, entry, partner):
        expected = self.theirs.array(entry)
        array = self.ours.array(partner)
        all_zero = expected.size > 0 and not np.any(expected) and not np.any(array)
        if all_zero and not self.verdict.accepts("all zero", entry.key):
            return Judgement(math.inf, problem="all zero in both")
        pair = (entry.rung, entry.tensor, partner.tensor)
        if pair not in self.judged:
            self.judged[pair] = self._judge(entry, expected, array)
        return self.judged[pair]

    def _judge(self, entry, expected, array):
        is_float = expected.dtype.kind == "f"
        if is_float and entry.rung not in OF_FILES and entry.dtype != self.verdict.precision:
            return Judgement(math.inf, problem=f"{entry.dtype} in a run in {self.verdict.precision}")
        if entry.rung == "mask":
            return self._judge_mask(entry, expected, array)
        if entry.rung == "score":
            return self._judge_score(entry, array)
        if entry.rung in EXACT or not is_float:
            return judge_exact(array, expected)
        if entry.key not in self.truth_entries:
            return Judgement(math.inf, problem="not in the reference's float64 run")
        exact = self.truth.array(self.truth_entries[entry.key])
        errors = self.errors.of(entry.key, exact)
        if errors is None:
            return Judgement(math.inf, problem="not in every run of the reference")
        scale = self.scales.get(entry.rung, 0.0)
        return judge(array, expected, exact, errors, self.verdict.precision, scale, self.detail)

    def _judge_mask(self, entry, expected, array):
        key = f"probability/{entry.site}"
        probability = self.truth.array(self.truth_entries[key])
        threshold = float(self.truth.array(self.truth_entries["table/threshold"]))
        allowed, _ = allowance(probability, self.errors.of(key, probability), "float32")
        _, largest_allowed = allowed
        return judge_mask(array, expected, probability, largest_allowed, threshold)

    def _judge_score(self, entry, array):
        """Require that a score follows from the candidate's own mask; masks are compared by their own rows."""
        case, metric = entry.site.rsplit(" ", 1)
        mask = self.ours.array(self.our_entries[f"mask/{case}"])
        truth = self.ours.array(self.our_entries[f"truth/{case}"])
        if float(array) == getattr(count(mask, truth), metric):
            return Judgement(0.0)
        return Judgement(math.inf, problem="does not follow from the mask")


def _rung_scales(truth):
    """Return the largest RMS among the tensors of each rung in `CANCELLING`."""
    scales = {}
    for entry in truth.entries:
        if entry.rung in CANCELLING:
            rms, _ = norms(truth.array(entry))
            scales[entry.rung] = max(scales.get(entry.rung, 0.0), rms)
    return scales

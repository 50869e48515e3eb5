"""The result of a comparison: as JSON, as text and as an exit code."""

from dataclasses import asdict
from fnmatch import fnmatchcase

from parity.accepted_gaps import ACCEPTED_GAPS
from parity.rule import RULE
from parity.verdict import AGREE, DIVERGED, INCOMPLETE

EXIT_CODES = {AGREE: 0, DIVERGED: 1, INCOMPLETE: 2}


def stale_gaps(verdicts):
    """Return a text for each row of `ACCEPTED_GAPS` whose case was compared and did not need it."""
    used = set().union(*(verdict.gaps for verdict in verdicts))
    compared = {(verdict.suite, verdict.case) for verdict in verdicts if not verdict.missing}
    stale = []
    for row in ACCEPTED_GAPS:
        was_compared = any(suite == row.suite and fnmatchcase(case, row.case) for suite, case in compared)
        if was_compared and row.label not in used:
            stale.append(f"parity/accepted_gaps.py, {row.label}: no compared case needs it any more; remove the row")
    return stale


def state_of(verdicts, stale):
    """Return the state of a whole comparison: AGREE, DIVERGED or INCOMPLETE, which outweighs the others."""
    states = {verdict.state for verdict in verdicts}
    if INCOMPLETE in states or not verdicts:
        return INCOMPLETE
    return DIVERGED if DIVERGED in states or stale else AGREE


def result_tree(suite, reference, candidate, verdicts, located=()):
    """Return the result as JSON values; `parity/report.py` shows them."""
    stale = stale_gaps(verdicts)
    sides = {}
    for role, dump in (("reference", reference), ("candidate", candidate)):
        sides[role] = {"backend": dump.backend, "versions": dump.versions, "flags": dump.flags}
    return {
        "format": "parity-result",
        "version": 1,
        "state": state_of(verdicts, stale),
        "suite": suite,
        "rule": asdict(RULE),
        **sides,
        "verdicts": [verdict.to_dict() for verdict in verdicts],
        "located": [asdict(culprit) for culprit in located],
        "stale": stale,
        "problems": [problem for verdict in verdicts for problem in verdict.missing],
    }


def format_verdict(verdict):
    """Format a verdict as lines for the console."""
    head = f"{verdict.state:<10} {verdict.case:<24} {verdict.precision}"
    if verdict.rows:
        worst = verdict.worst
        head += f"  {len(verdict.rows):5d} tensors, largest ratio {worst.ratio:.3g} ({worst.rung} {worst.site})"
    lines = [head]
    if verdict.first:
        row = verdict.first
        reason = row.problem or f"ratio {row.ratio:.3g}"
        lines.append(
            f"    first: {row.rung} {row.site}: {reason}, relative error "
            f"{row.error:.2g}, the reference's own {row.own:.2g}, cosine {row.cosine:.6f}"
        )
    shown = verdict.missing + verdict.problems
    lines += [f"    {problem}" for problem in shown[:5]]
    if len(shown) > 5:
        lines.append(f"    and {len(shown) - 5} more")
    return "\n".join(lines)

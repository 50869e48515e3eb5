"""Comparison of the structure of two sections: modules, calls, random draws, and the recorders' own checks."""


def compare_structure(verdict, reference, candidate):
    """Add the differences between two `Section`s in anything but numbers to `verdict.problems`."""
    for section, who in ((reference, "reference"), (candidate, "candidate")):
        for name in section.uncalled:
            if not verdict.accepts("uncalled", name):
                verdict.problems.append(f"module {name} is never called in the {who}")
        for name, passed in section.checks.items():
            if not passed:
                verdict.problems.append(f"{who}: the check {name!r} failed")
    compare_names(verdict, "module", list(reference.types), list(candidate.types))
    _compare_draws(verdict, reference.draws, candidate.draws)
    compare_names(verdict, "call", list(reference.arguments), list(candidate.arguments))
    for call, arguments in reference.arguments.items():
        if call in candidate.arguments and candidate.arguments[call] != arguments:
            verdict.problems.append(f"call {call} has other arguments")
    if reference.contexts != candidate.contexts:
        verdict.problems.append("forward passes in other contexts")


def compare_names(verdict, kind, expected, found):
    """Add missing names, unexpected names and a different order to `verdict.problems`.

    kind: word for what is named. expected, found: names in the reference and in the candidate, in order.
    """
    known = set(expected)
    present = set(found)
    verdict.problems += [f"{kind} {name} is missing in the candidate" for name in expected if name not in present]
    verdict.problems += [f"{kind} {name} is not in the reference" for name in found if name not in known]
    if known == present and expected != found:
        at = _first_difference(expected, found)
        verdict.problems.append(f"{kind}s in another order, from {found[at]} on (reference: {expected[at]})")


def _compare_draws(verdict, expected, found):
    """Require the same random draws in the same order, none missing and none left over."""
    if expected == found:
        return
    known = set(map(tuple, expected))
    present = set(map(tuple, found))
    missing = known - present
    extra = present - known
    if not missing and not extra and len(expected) == len(found):
        difference = "in another order"
    else:
        difference = f"{len(missing)} missing, {len(extra)} more than in the reference"
    at = _first_difference(expected, found)
    site, step, case, member, _ = found[at] if at < len(found) else expected[at]
    place = f"{site}, step {step}, case {case}, member {member}"
    verdict.problems.append(f"noise tape: draws {difference}; first at number {at}: {place}")


def _first_difference(expected, found):
    """Return the index of the first item that differs; the length of the shorter list if none does."""
    for k, (one, other) in enumerate(zip(expected, found)):
        if one != other:
            return k
    return min(len(expected), len(found))

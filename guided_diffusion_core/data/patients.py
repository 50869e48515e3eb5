"""Find the patients in the names of cases, so that the cases of one patient stay together."""

import re

RULE = "a patient is the name up to the first number in which the names differ"
_NUMBER = re.compile(r"\d(?=$|[_\-. ])")  # the end of a number at the end of a word


def patient_rule(names):
    """Return the function that gives the patient in the name of a case.

    names: the names of all cases of a data set.
    A patient is the name up to a number at the end of a word; of several, up to the first one in which the names
    differ: TCGA_CS_4941 of TCGA_CS_4941_19960909_12, P012 of P012_slice_3, BraTS-GLI-00000 of BraTS-GLI-00000-000. The
    first number of BraTS20_Training_001, which all cases share, tells nothing. A name without such numbers is a patient
    of its own.
    """
    names = list(names)
    most = max((len(_NUMBER.findall(name)) for name in names), default=0)
    for number in range(most):
        if len({_up_to(name, number) for name in names if len(_NUMBER.findall(name)) > number}) > 1:
            return lambda name: _up_to(name, number)
    return lambda name: name


def _up_to(name, number):
    """Return a name up to one of its numbers, counted from 0; the whole name if it has fewer."""
    ends = [match.end() for match in _NUMBER.finditer(name)]
    return name[: ends[number]] if number < len(ends) else name

"""The one error that a user of the command lines is meant to see."""


class UserError(Exception):
    """Something that the user gave is wrong: a file, a folder or a flag.

    The message is one clear sentence or a short list: which file or flag, what was found,
    what was expected and how to mend it. Command lines print it without a traceback and exit
    with code 2.
    """


def found_expected(where, found, expected, mend):
    """Return the `UserError` of the house's one form.

    where:    the file or flag that is wrong.
    found:    what is there now.
    expected: what should be there.
    mend:     what the user can do, an imperative sentence.
    """
    return UserError(f"{where}: found {found}; expected {expected}. {mend}")

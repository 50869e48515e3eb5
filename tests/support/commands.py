"""Checks of the files and the errors of a command line."""


def assert_refused(result, *texts):
    """Assert exit code 2, one message that contains the texts, and no traceback.

    result: (exit code, standard output, standard error).
    """
    code, _, errors = result
    assert code == 2, errors
    for text in texts:
        assert text in errors
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) <= 3


def files_below(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) if folder.exists() else []

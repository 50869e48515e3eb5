"""What a command line wrote and how it was refused."""


def assert_refused(result, *texts):
    """Exit code 2, one message that holds the texts, no traceback."""
    code, _, errors = result
    assert code == 2, errors
    for text in texts:
        assert text in errors
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) <= 3


def files_below(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) if folder.exists() else []

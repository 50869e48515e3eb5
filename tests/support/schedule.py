"""Sharing the tests among processes (pytest-xdist): what stays together, and what starts first."""

from xdist.scheduler import LoadScopeScheduling

# Files whose tests run in one process, since they share a fixture of the session that takes minutes to make.
TOGETHER = {
    "tests/parity/test_parity_mutations.py": "tests/parity/test_parity_suite.py",
}


class FilesTogether(LoadScopeScheduling):
    """Give each process whole files, so that a file's fixtures are made once."""

    def _split_scope(self, nodeid):
        file = nodeid.split("::")[0]
        return TOGETHER.get(file, file)


def seconds_of(item):
    """Return the seconds that a test's mark `long` states, 0 without that mark."""
    mark = item.get_closest_marker("long")
    return mark.kwargs["seconds"] if mark else 0


def longest_file_first(items):
    """Sort tests by the time of their whole file: a long file that starts last runs when all others are done."""
    seconds = {}
    for item in items:
        seconds[item.path] = seconds.get(item.path, 0) + seconds_of(item)
    items.sort(key=lambda item: -seconds[item.path])

"""Sharing the tests among processes: whole files, the record of the ladder once, the longest first."""

import re
from types import SimpleNamespace

import pytest
from support import schedule
from support.backends import ROOT


def scope_of(file):
    return schedule.FilesTogether._split_scope(None, f"{file}::test_something[a::b]")


def test_whole_files_stay_together():
    assert scope_of("tests/data/test_fuzz_data.py") == "tests/data/test_fuzz_data.py"
    for file, other in schedule.TOGETHER.items():
        assert (ROOT / file).is_file() and scope_of(file) == scope_of(other) == other


def test_the_ladder_is_recorded_in_one_process():
    files = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]
    users = [file for file in files if re.search(r"^def \w+\(.*\bladder\b.*\):", (ROOT / file).read_text(), re.M)]
    assert len(users) > 1 and len({scope_of(file) for file in users}) == 1


def item(path, seconds=None):
    mark = None if seconds is None else pytest.mark.long(seconds=seconds).mark
    return SimpleNamespace(path=path, get_closest_marker=lambda name: mark)


def test_the_file_with_most_seconds_starts_first_and_the_rest_keeps_its_order():
    items = [item("a"), item("b", 30), item("c", 20), item("a"), item("c", 20), item("d")]
    schedule.longest_file_first(items)
    assert [each.path for each in items] == ["c", "c", "b", "a", "a", "d"]

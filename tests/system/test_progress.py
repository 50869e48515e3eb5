"""Test the progress of long work: a bar on a terminal, whole lines in a file, and times without the first part."""

import io
import re
import sys

import pytest

from guided_diffusion_core.system import progress as module
from guided_diffusion_core.system.progress import LateProgress, duration, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Let the bars' time stand still, but for what the test adds to the list's only number."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def shown(monkeypatch, file):
    monkeypatch.setattr(sys, "stderr", file)
    return file


def test_a_file_gets_a_line_a_minute_and_no_carriage_return(monkeypatch, clock):
    file = shown(monkeypatch, io.StringIO())
    for _ in progress(range(300), unit="case", desc="scoring"):
        clock[0] += 1
    text = file.getvalue()
    assert "\r" not in text and "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].startswith("scoring: 0 of 300 cases") and lines[-1].startswith("scoring: 300 of 300 cases")
    assert 5 <= len(lines) <= 8 and all(
        re.match(r"scoring: \d+ of 300 cases, [\d:]+ passed, \S+ left", line) for line in lines
    )


def test_short_work_that_leaves_no_bar_leaves_no_line(monkeypatch, clock):
    file = shown(monkeypatch, io.StringIO())
    for _ in progress(range(30), unit="case", desc="scoring", leave=False, delay=2):
        pass
    assert file.getvalue() == ""


def test_a_bar_inside_another_leaves_whole_lines_too(monkeypatch, clock):
    """A validation inside a training has a bar of its own, for which tqdm moves the cursor on a terminal."""
    file = shown(monkeypatch, io.StringIO())
    for _ in progress(range(2), unit="step", desc="training"):
        for _ in progress(range(3), unit="image", desc="sampling"):
            clock[0] += 61
    assert "\x1b" not in file.getvalue()
    assert all(re.match("(training|sampling): ", line) for line in file.getvalue().splitlines())


def test_a_terminal_gets_a_bar(monkeypatch):
    file = shown(monkeypatch, Terminal())
    for _ in progress(range(3), unit="case", desc="scoring"):
        pass
    assert "\r" in file.getvalue() and "100%" in file.getvalue()


@pytest.mark.parametrize("file", [io.StringIO, Terminal])
@pytest.mark.parametrize("before", [0, 7])
def test_the_first_part_is_left_out_of_the_time(monkeypatch, clock, file, before):
    """Let the first step take an hour, as where Jittor compiles, and each of the others a second."""
    file = shown(monkeypatch, file())
    with LateProgress(before, total=100, unit="step", desc="training") as bar:
        clock[0] += 3600
        assert file.getvalue() == "", "nothing that a compiler's output could cut through"
        bar.update(1)
        for _ in range(41):
            clock[0] += 1
            bar.update(1)
    left = 100 - before - 42
    assert f"{before + 42}" in file.getvalue()
    assert f"<00:{left:02d}" in file.getvalue() or f"00:{left:02d} left" in file.getvalue()


def test_a_bar_that_never_began_and_a_hidden_one(monkeypatch):
    file = shown(monkeypatch, Terminal())
    bar = LateProgress(total=3, unit="step", desc="training")
    bar.hide()
    bar.close()
    assert file.getvalue() == ""
    with LateProgress(total=3, unit="step", desc="training", disable=True) as bar:
        bar.update(1)
        bar.hide()
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    "seconds, text",
    [(0.2, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "60 min"), (4800, "1 h 20 min"), (200_000, "2.3 days")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_lines_come_once_a_minute():
    assert module.SECONDS_BETWEEN_LINES == 60

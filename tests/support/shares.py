"""Which of the planted faults a run of the tests plants: a share that changes with each commit."""

import os
import subprocess
import time

from support.backends import ROOT

SHARES = 5
VARIABLE = "MEDSEGDIFF_FAULTS"


def chosen_share():
    """Return (number of the share from 1 to SHARES or "all", the reason in words).

    MEDSEGDIFF_FAULTS=all or a number chooses. Otherwise the number of commits does, so that SHARES commits in a row
    plant every fault; without git the day does.
    """
    asked = os.environ.get(VARIABLE)
    if asked is not None:
        if asked != "all" and asked not in map(str, range(1, SHARES + 1)):
            raise ValueError(f"{VARIABLE}: found {asked!r}; expected all, or a number from 1 to {SHARES}")
        return (asked if asked == "all" else int(asked)), f"{VARIABLE}={asked}"
    commits = commit_count()
    if commits:
        return commits % SHARES + 1, f"commit number {commits}"
    day = int(time.time() // 86400)
    return day % SHARES + 1, f"day {day}"


def commit_count():
    """Return the number of commits up to the one that is checked out, 0 without git or without the whole history."""
    count = ["git", "rev-list", "--count", "HEAD"]
    shallow = ["git", "rev-parse", "--is-shallow-repository"]
    try:
        answers = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for command in (count, shallow)]
    except FileNotFoundError:
        return 0
    commits, is_shallow = (answer.stdout.strip() for answer in answers)
    return int(commits) if commits.isdigit() and is_shallow == "false" else 0

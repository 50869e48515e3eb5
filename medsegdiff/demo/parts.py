"""The commands that the demo runs, one after the other, each under a heading with the time left."""

import subprocess
import sys
import time

from medsegdiff.demo.results import minutes

# What each part takes on 2 cores, in seconds: the unit of the time that the headings say is left.
EXPECTED = {"train": 90, "sample": 15, "score": 5}


class Parts:
    """A run of `medsegdiff` commands in processes of their own.

    backends: how often the parts of `EXPECTED` are run.
    """

    def __init__(self, backends):
        self.started = time.perf_counter()
        self.number = 0
        self.count = backends * len(EXPECTED)
        self.left = backends * sum(EXPECTED.values())
        self.done = 0

    def elapsed(self):
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def run(self, part, backend, folder, /, **flags):
        """Run `medsegdiff PART` with the flags and return its seconds.

        Its output goes to `{part}.txt` in `folder`; progress and errors go to the console.
        Ends the process with the command's exit code if that is not 0.
        """
        pace = self.elapsed() / self.done if self.done else 1
        self.number += 1
        print(
            f"\n[{self.number}/{self.count}] {part} with {backend}; {minutes(self.elapsed())} passed, "
            f"about {minutes(self.left * pace)} left",
            flush=True,
        )
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "medsegdiff", part]
        for name, value in flags.items():
            command += [f"--{name}", str(value)]
        began = time.perf_counter()
        with open(folder / f"{part}.txt", "w", encoding="utf-8") as output:
            code = subprocess.run(command, stdout=output).returncode
        if code:
            print(
                f"medsegdiff demo: {part} ended with exit code {code}; its message is above, the rest of its "
                f"output in {output.name}.",
                file=sys.stderr,
            )
            # as a shell does for a process that a signal has ended
            sys.exit(code if code > 0 else 128 - code)
        self.left -= EXPECTED[part]
        self.done += EXPECTED[part]
        return time.perf_counter() - began

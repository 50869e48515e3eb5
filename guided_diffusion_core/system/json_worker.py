"""A process of its own that receives requests on its standard input and answers with JSON lines on a pipe.

The answers have a pipe of their own, because frameworks print to the standard output. The parent's side is
`WorkerProcess`; `send` and `failure` are for the worker.
"""

import contextlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

from guided_diffusion_core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class WorkerFailed(Exception):
    """A worker has ended, or could not do what it was asked for.

    reason: its own message. user: True if the user can fix it, so that no log is needed.
    """

    def __init__(self, message, reason, user=False):
        super().__init__(message)
        self.reason = reason
        self.user = user


class WorkerProcess:
    """A running worker: `python -m MODULE ARGUMENTS... PIPE`, with the number of the pipe for its answers.

    name:        for messages. log: path of the file for everything that the process prints.
    environment: further environment variables, or other values of them.
    """

    def __init__(self, name, module, arguments, log, environment):
        self.name = name
        self.log = Path(log)
        paths = [str(ROOT), os.getcwd(), os.environ.get("PYTHONPATH", "")]
        read, write = os.pipe()
        with open(self.log, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, str(write)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(write,),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
                text=True,
                start_new_session=True,  # Ctrl-C reaches only the parent, which then stops its workers
            )
        os.close(write)
        self._answers = os.fdopen(read, encoding="utf-8")

    def request(self, tree):
        """Send a request, JSON values in one line. A worker that has ended is noticed by `answer`."""
        with contextlib.suppress(OSError):
            send(self._process.stdin, tree)

    def answer(self):
        """Wait for the next answer and return it, a dict. Raises `WorkerFailed`."""
        line = self._answers.readline()
        if line:
            tree = json.loads(line)
        else:
            tree = {"error": f"the process ended with exit code {self._process.wait()}", "user": False}
        if "error" in tree:
            message = f"{self.name}: {tree['error']}"
            if not tree["user"]:
                message += f"; see {self.log}"
            raise WorkerFailed(message, tree["error"], tree["user"])
        return tree

    def stop(self):
        """End the process."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._answers.close()


def send(stream, tree):
    """Write JSON values as one line."""
    stream.write(json.dumps(tree) + "\n")
    stream.flush()


def failure(error):
    """Return the answer for an exception; its traceback goes to the log, unless it is a `UserError`."""
    if isinstance(error, UserError):
        return {"error": str(error), "user": True}
    traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {error}", "user": False}

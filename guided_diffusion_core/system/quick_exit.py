"""Ctrl-C while a program starts or ends, when there is no work to save: it leaves at once, without a traceback.

A program imports this module before all others, which may take seconds. So it needs only the standard library.
"""

import atexit
import os
import signal
from contextlib import contextmanager

INTERRUPTED = 130  # exit code of a program that Ctrl-C has ended: 128 and the number of the signal


@contextmanager
def leaving_at_once():
    """Let Ctrl-C end the process inside the block, and again when the interpreter exits.

    A process that was told to ignore Ctrl-C, such as one behind nohup, goes on to ignore it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # The frameworks still have things to do at exit, and would print a traceback.
        atexit.register(signal.signal, signal.SIGINT, leave)


def leave(signum, frame):
    """End the process with one line; a handler of signals."""
    os.write(2, b"\nInterrupted.\n")  # not `print`: the signal may come in the middle of one
    os._exit(INTERRUPTED)

"""Ctrl-C as a request that a run answers when it has reached a whole state."""

import contextlib
import os
import signal
import sys

from tqdm import tqdm

from guided_diffusion_core.system.processes import TORCHRUN, launched


@contextlib.contextmanager
def stop_requested():
    """Yield a function that tells whether Ctrl-C was pressed; the second press ends at once.

    Under torchrun, which leaves its processes half a minute, SIGTERM counts as Ctrl-C.
    """
    pressed = []
    process = os.getpid()

    def handler(signum, frame):
        if os.getpid() != process:
            return  # a loader's process has this handler too; its parent ends it
        if pressed:
            signal.default_int_handler(signum, frame)
        pressed.append(True)
        if launched().rank:
            return  # the first process speaks
        tqdm.write(
            "Ctrl-C: finishing this step and writing a checkpoint; press again to stop at once.", file=sys.stderr
        )

    answered = [signal.SIGINT] + [signal.SIGTERM] * (launched().launcher == TORCHRUN)
    previous = {number: signal.signal(number, handler) for number in answered}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)

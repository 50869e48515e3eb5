"""Ctrl-C as a request that a run answers at the end of its current step."""

import contextlib
import os
import signal
import sys

from tqdm import tqdm

from guided_diffusion_core.system.processes import TORCHRUN, launched


@contextlib.contextmanager
def stop_requested():
    """Yield a function that tells whether Ctrl-C was pressed; a second press ends the process at once.

    Under torchrun, SIGTERM counts as Ctrl-C: torchrun kills its processes half a minute after it.
    """
    pressed = []
    process = os.getpid()

    def handler(signum, frame):
        if os.getpid() != process:
            return  # a data loader's process inherits this handler; its parent ends it
        if pressed:
            signal.default_int_handler(signum, frame)
        pressed.append(True)
        if launched().rank:
            return  # only the first process prints the message
        tqdm.write(
            "Ctrl-C: finishing this step and writing a checkpoint; press again to stop at once.", file=sys.stderr
        )

    signals = [signal.SIGINT]
    if launched().launcher == TORCHRUN:
        signals.append(signal.SIGTERM)
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)

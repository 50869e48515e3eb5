"""Ctrl-C in a running command: a note of it, or a request that the run answers at the end of its current step."""

import contextlib
import os
import signal
import sys
import threading

from tqdm import tqdm

from guided_diffusion_core.system import quick_exit
from guided_diffusion_core.system.processes import TORCHRUN, launched


@contextlib.contextmanager
def noted():
    """Raise KeyboardInterrupt at Ctrl-C, as usual, and yield a function that tells whether it was pressed.

    Where Ctrl-C means something else, such as nothing behind nohup, that stays.
    """
    pressed = []
    process = os.getpid()

    def handler(signum, frame):
        if os.getpid() != process:
            return  # a forked process of a library inherits this handler; its parent ends it
        pressed.append(True)
        signal.default_int_handler(signum, frame)

    usual = (signal.default_int_handler, quick_exit.leave)
    is_main = threading.current_thread() is threading.main_thread()  # other threads may not set handlers
    previous = signal.getsignal(signal.SIGINT)
    if not is_main or previous not in usual:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)


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

    # A process behind nohup goes on to ignore Ctrl-C.
    signals = [] if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else [signal.SIGINT]
    if launched().launcher == TORCHRUN:
        signals.append(signal.SIGTERM)
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)

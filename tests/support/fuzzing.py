"""What an action makes of damaged files: it loads or refuses them, in time, and every other end is a failure."""

import contextlib
import signal
import traceback
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from guided_diffusion_core.errors import UserError

SECONDS = 20  # after which an action on one damaged file, of milliseconds else, hangs


@contextlib.contextmanager
def time_limit():
    def late(*_):
        raise TimeoutError(f"not done after {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def outcome(action, what):
    """ "loaded" or "refused"; every other end of an action fails the test."""
    try:
        with time_limit():
            action()
        return "loaded"
    except UserError as error:
        assert str(error) and "Traceback" not in str(error)
        return "refused"
    except Exception:
        pytest.fail(f"{what}\n{traceback.format_exc()}")


def try_all(path, damaged, actions, both=True):
    """Put each damaged content in the place of a file and run the actions; some load and some are refused."""
    content = path.read_bytes()
    seen = Counter()
    for done, mutant in damaged:
        path.write_bytes(mutant)
        for action in actions:
            seen[outcome(action, f"{path.name}: {done}")] += 1
    path.write_bytes(content)
    for action in actions:
        action()
    assert seen["refused"] and (seen["loaded"] or not both), seen


def pictures(shared_data):
    """Real ones, small: a colour photograph, an ultrasound picture and its mask."""
    source = shared_data / "REFUGE2/Train/Disc_Cup_Fovea_Illustration/T0001.jpg"
    photograph = Image.open(source).crop((900, 900, 948, 948))
    mask = Image.open(shared_data / "DDTI/Train/masks/1.PNG").convert("L")
    y, x = (int(values.mean()) for values in np.nonzero(np.asarray(mask) > 128))
    box = (x - 60, y - 24, x - 12, y + 24)
    return photograph, Image.open(shared_data / "DDTI/Train/images/1.PNG").crop(box), mask.crop(box)

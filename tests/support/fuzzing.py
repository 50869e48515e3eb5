"""Run actions on damaged files. Each must load the file or refuse it in time; everything else is a failure."""

import contextlib
import signal
import traceback
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from guided_diffusion_core.errors import UserError

SECONDS = 20  # limit for an action on one damaged file, which usually takes milliseconds


@contextlib.contextmanager
def time_limit():
    """Raise TimeoutError in the body after `SECONDS`."""

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
    """Run an action and return "loaded" or "refused". Any error other than `UserError` fails the test.

    what: description of the damage, for the failure.
    """
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
    """Run the actions on each damaged content of a file, then restore the file.

    damaged: pairs (description, content).
    both:    require that some contents load; in any case some must be refused.
    """
    content = path.read_bytes()
    seen = Counter()
    for damage, mutant in damaged:
        path.write_bytes(mutant)
        for action in actions:
            seen[outcome(action, f"{path.name}: {damage}")] += 1
    path.write_bytes(content)
    for action in actions:
        action()
    assert seen["refused"] and (seen["loaded"] or not both), seen


def pictures(shared_data):
    """Return small real pictures: a colour photograph, an ultrasound picture and its mask."""
    source = shared_data / "REFUGE2/Train/Disc_Cup_Fovea_Illustration/T0001.jpg"
    photograph = Image.open(source).crop((900, 900, 948, 948))
    mask = Image.open(shared_data / "DDTI/Train/masks/1.PNG").convert("L")
    rows, columns = np.nonzero(np.asarray(mask) > 128)
    y = int(rows.mean())
    x = int(columns.mean())
    box = (x - 60, y - 24, x - 12, y + 24)
    return photograph, Image.open(shared_data / "DDTI/Train/images/1.PNG").crop(box), mask.crop(box)

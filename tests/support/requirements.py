"""Requirements of single tests. A machine without them skips those tests, unless a variable requires them."""

import os

import pytest


def lacking(message, variable):
    """Skip the running test with a message, or fail it where the environment variable is set, as in `.ci/run`."""
    (pytest.fail if os.environ.get(variable) else pytest.skip)(message)

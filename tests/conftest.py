"""Fixtures that all tests share: the backends, float64, and the folder of real data."""

import os

# Processes that share the tests (pytest-xdist) compute with one thread each; numpy reads this when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The tests are those of the CPU, also where there is a GPU that `--device auto` would take, unless one is asked for.
if "MEDSEGDIFF_DEVICE" not in os.environ:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
from support import schedule, shares
from support.backends import BACKENDS, ROOT, Backend, start
from support.requirements import lacking

from guided_diffusion_core.networks import registry


def pytest_report_header(config):
    share, reason = shares.chosen_share()
    return [
        f"backends: {', '.join(BACKENDS)}",
        f"planted faults: share {share} of {shares.SHARES} ({reason}); {shares.VARIABLE}=all plants all of them",
    ]


def pytest_collection_modifyitems(config, items):
    """Start the longest files first where processes share the tests; by hand the order stays."""
    if hasattr(config, "workerinput"):
        schedule.longest_file_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    # Otherwise the files with most tests would start first.
    config.option.loadscopereorder = False
    return schedule.FilesTogether(config, log)


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request):
    """Return each backend in turn, started. A backend that cannot be imported fails its tests."""
    start(request.param)
    return Backend(request.param)


@pytest.fixture(autouse=True)
def children_may_be_killed():
    """Once imported, Jittor ends the process without a word when one of its children is killed, as some tests do."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """A shell lets programs that it starts in the background ignore Ctrl-C, and they pass that on."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def float64(backend):
    """Let `backend` compute in float64 during the test."""
    runtime = backend.module("runtime")
    runtime.set_precision("float64")
    yield
    runtime.set_precision("float32")


@pytest.fixture(scope="module")
def example():
    """Register the family of `support/networks/example` in this process during the tests of a module."""
    before = list(registry.networks.__path__)
    registry.add_folder(ROOT / "tests" / "support" / "networks")
    yield registry.family_named("example")
    registry.networks.__path__[:] = before


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the real data: $MEDSEGDIFF_DATA, or shared/data next to the repository.

    Without it the test is skipped; it fails if MEDSEGDIFF_REQUIRE_DATA is set, as in .ci/run.
    """
    folder = Path(os.environ.get("MEDSEGDIFF_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        lacking(f"no folder of real data at {folder}; set MEDSEGDIFF_DATA", "MEDSEGDIFF_REQUIRE_DATA")
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a script in this process: function of its name and flags that returns (exit code, stdout, stderr)."""

    def run(script, *flags):
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        capsys.readouterr()
        try:
            runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return (code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def browser():
    """Path of Chromium. Without it the test is skipped; it fails if MEDSEGDIFF_REQUIRE_BROWSER is set."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        lacking("no chromium, chromium-browser or google-chrome on PATH", "MEDSEGDIFF_REQUIRE_BROWSER")
    return found

"""A third backend, which its suite registers: `support/numpy_backend`."""

import pytest
from support.backends import BACKENDS, ROOT
from support.parity_runs import parity, result_of

SUITE = ("--suite", "support.numpy_backend.suite")

pytestmark = pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is the reference")


def run_parity(*args):
    return parity(*args, modules=[ROOT / "tests"])


def test_a_registered_backend_is_compared_with_the_reference(tmp_path):
    out_dir = tmp_path / "run"
    done = run_parity("run", "all", *SUITE, "--backends", "pytorch,numpy", "--layers", "--out_dir", out_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("agree: numpy against pytorch")
    sites = {(row["rung"], row["site"]) for verdict in result_of(out_dir)["verdicts"] for row in verdict["rows"]}
    assert {("weight", "hidden.weight"), ("output", "hidden#0"), ("output", "out#0"), ("result", "out")} <= sites


def test_a_mistake_in_a_registered_backend_is_located(tmp_path):
    """The suite of the test's own, whose port in numpy leaves the last bias out."""
    (tmp_path / "faulty.py").write_text(
        "from support.numpy_backend import suite\n"
        "from support.numpy_backend.suite import CASES, inputs, weights\n"
        "def open_port(backend):\n"
        "    port = suite.open_port(backend)\n"
        "    if backend == 'numpy':\n"
        "        from support.numpy_backend.network import Linear\n"
        "        compute = Linear.compute\n"
        "        Linear.compute = lambda self, x: compute(self, x) - self.bias * (len(self.bias) == 3)\n"
        "    return port\n"
    )
    done = parity(
        *("locate", "forward/perceptron", "--suite", "faulty", "--backends", "pytorch,numpy"),
        *("--out_dir", tmp_path / "run"),
        modules=[ROOT / "tests", tmp_path],
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "forward/perceptron: out#0 adds the first error" in done.stdout


def test_two_backends_are_compared_however_many_there_are(tmp_path):
    """Without --backends it is PyTorch and Jittor, for which this suite has no port in Jittor."""
    done = run_parity("run", "weights/perceptron", *SUITE, "--out_dir", tmp_path / "run")
    assert done.returncode == 2
    assert "jittor: KeyError" in done.stderr


def test_one_backend_on_two_devices_is_compared(tmp_path):
    out_dir = tmp_path / "run"
    done = run_parity("run", "all", *SUITE, "--backends", "pytorch,pytorch@cpu", "--layers", "--out_dir", out_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("agree: pytorch@cpu against pytorch")
    assert result_of(out_dir)["candidate"]["flags"]["device"] == "cpu"
    again = parity("report", out_dir)
    assert again.returncode == 0, again.stderr


def test_a_device_that_is_not_there_ends_the_run(tmp_path):
    """The candidate's device counts, not that of --device."""
    chosen = ("--backends", "pytorch,pytorch@cuda:99", "--device", "cpu")
    done = run_parity("run", "weights/perceptron", *SUITE, *chosen, "--out_dir", tmp_path / "run")
    assert done.returncode == 2
    assert "--device cuda:99: found no such device" in done.stderr and "Traceback" not in done.stderr

"""Test the worked example of `parity/README.md` with the public command."""

import pytest
from support.backends import BACKENDS, ROOT
from support.parity_runs import parity, result_of

pytestmark = pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")


def test_the_port_agrees(tmp_path):
    done = parity("run", "all", "--suite", "parity.example.suite", "--out_dir", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    result = result_of(tmp_path / "run")
    assert [row["case"] for row in result["verdicts"][::2]] == [
        "weights/example",
        "forward/example",
        "gradients/example",
    ]
    sites = {row["site"] for verdict in result["verdicts"] for row in verdict["rows"]}
    assert {"act#0", "act#5", "head#0"} <= sites, "one module called six times; one that the ports name differently"
    last_line = done.stdout.splitlines()[-1]
    assert last_line in (ROOT / "parity" / "README.md").read_text(), "the README shows what the command prints"


@pytest.mark.parametrize("case", ["forward/example", "gradients/example"])
def test_the_mistake_is_located(tmp_path, case):
    done = parity("locate", case, "--suite", "parity.example.faulty_suite", "--out_dir", tmp_path / "run")
    assert done.returncode == 1, done.stdout + done.stderr
    (located,) = result_of(tmp_path / "run")["located"]
    assert located["site"] == "up#0" and located["direction"] == "forward"
    assert f"{case}: up#0 adds the first error" in done.stdout


def test_a_port_in_another_folder_is_found(tmp_path):
    """A suite may lie next to the user's own code."""
    (tmp_path / "my_suite.py").write_text("from parity.example.suite import *\n")
    done = parity("run", "weights/example", "--suite", "my_suite", "--out_dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

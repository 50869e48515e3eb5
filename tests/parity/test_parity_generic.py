"""The generic operators that Jittor takes on a GPU, compared on the CPU with PyTorch by the parity suite."""

import pytest
from support.backends import BACKENDS, ROOT
from support.parity_runs import parity, result_of

from parity.verdict import AGREE

# Both versions of the network, with attention, Fourier transforms and recomputed activations; AdamW; a sampler.
CASES = ("training/checkpointing", "optimizer/adamw", "sampling/ddim")


@pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")
@pytest.mark.long(seconds=45)
def test_generic_operators_agree(tmp_path):
    suite = ("--suite", "support.generic_suite")
    done = parity("run", *CASES, *suite, "--out_dir", tmp_path / "run", modules=[ROOT / "tests"])
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = result_of(tmp_path / "run")["verdicts"]
    assert {(row["case"], row["precision"]) for row in verdicts} == {
        (case, precision) for case in CASES for precision in ("float32", "float64")
    }
    assert all(row["state"] == AGREE and row["rows"] for row in verdicts)

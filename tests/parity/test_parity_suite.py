"""Test the whole ladder on both backends, run like a user does, and the harness against itself."""

import numpy as np
import pytest
from support.backends import BACKENDS
from support.parity_runs import parity, result_of

from parity import run
from parity.compare import compare_case
from parity.dump import LAYERS, PLAIN, read_dump
from parity.locate import LAYER_FAMILIES, locate
from parity.medsegdiff import CASES
from parity.verdict import AGREE

# Every test here waits for the record of the ladder, six minutes of processor time.
pytestmark = pytest.mark.long(seconds=45)
both = pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")
# One of each family that computes; their records are compared with a second recording, bit by bit.
AGAIN = ("forward/new", "gradients/new", "steps/new", "sampling/ancestral", "masks/brats")


@both
def test_the_backends_agree(ladder):
    folder, done = ladder
    assert done.returncode == 0, done.stdout + done.stderr
    result = result_of(folder)
    assert result["state"] == AGREE and not result["located"] and not result["stale"] and not result["problems"]
    found = {(row["case"], row["precision"]) for row in result["verdicts"] if row["variant"] == PLAIN}
    assert found == {(case.name, precision) for case in CASES for precision in case.precisions}
    alone = {row["case"] for row in result["verdicts"] if row["variant"] == LAYERS}
    assert alone == {case.name for case in CASES if case.family in LAYER_FAMILIES and "float64" in case.precisions}
    assert all(row["state"] == AGREE and row["rows"] for row in result["verdicts"])
    assert sum(len(row["rows"]) for row in result["verdicts"]) > 20000
    assert (folder / "report.html").stat().st_size > 10000


@both
def test_every_layer_computes_in_the_precision_of_its_run(ladder):
    folder, _ = ladder
    for backend in BACKENDS:
        dump = read_dump(folder / backend)
        for precision in ("float64", "float32"):
            for name in ("forward/new", "gradients/new-flags"):
                section = dump.load(name, precision, PLAIN)
                types = {entry.dtype for entry in section.entries if entry.dtype.startswith("float")}
                assert types == {precision}
                assert len({entry.site for entry in section.entries if entry.rung == "output"}) > 150


@both
def test_modules_draws_and_repeated_calls_are_recorded(ladder):
    dump = read_dump(ladder[0] / BACKENDS[1])
    draws = dump.load("training/new", "float32", PLAIN).draws
    sites = {site for site, *_ in draws}
    assert {"train/order", "train/timestep", "train/noise"} < sites
    assert any(site.startswith("dropout/hwm.") for site in sites)
    assert {site for site, *_ in dump.load("sampling/ancestral", "float32", PLAIN).draws} == {
        "sample/initial",
        "sample/step",
    }
    assert dump.load("forward/new", "float32", PLAIN).checks == {"recording changes nothing": True}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_against_itself_is_bitwise_clean(name, ladder, tmp_path):
    folder, _ = ladder
    first = read_dump(folder / name)
    again = run.Backend(name, run.SUITE, tmp_path / name)
    try:
        for case in AGAIN:
            again.record(run.Job(case, "float32", PLAIN))
    finally:
        again.stop()
    for case in AGAIN:
        one, other = (dump.load(case, "float32", PLAIN) for dump in (first, again.dump))
        assert [vars(entry) for entry in one.entries] == [vars(entry) for entry in other.entries]
        assert one.draws == other.draws
        for entry in one.entries:
            assert one.array(entry).tobytes() == other.array(entry).tobytes(), entry.key


@both
def test_a_dump_compared_with_itself_agrees(ladder, tmp_path):
    dump = ladder[0] / BACKENDS[0]
    done = parity("compare", dump, dump, "--out_dir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for verdict in result_of(tmp_path)["verdicts"] for row in verdict["rows"]]
    assert len(rows) > 20000 and all(row["ulps"] == [0, 0, 0] for row in rows)


@both
def test_a_changed_layer_of_a_real_dump_is_located(ladder):
    """If one layer's own run differs, that layer and no other is named."""
    reference, candidate = (read_dump(ladder[0] / name) for name in BACKENDS)
    free = [compare_case(reference, candidate, "forward/new", "float32", detail=False)]
    alone = [compare_case(reference, candidate, "forward/new", "float32", LAYERS, detail=False)]
    assert locate(free, alone) is None
    for row in alone[0].rows:
        if row.rung == "output" and row.site in ("out.0#0", "middle_block.1.norm#0", "network#0[0]"):
            row.ratio = 3.0
    culprit = locate(free, alone)
    assert (culprit.site, culprit.direction) == ("middle_block.1.norm#0", "forward")


@both
def test_inputs_of_layers_alone_are_the_references(ladder):
    """Both backends have run a layer on the same numbers: those of PyTorch's plain run."""
    free = read_dump(ladder[0] / BACKENDS[0]).load("forward/new", "float32", PLAIN)
    alone = read_dump(ladder[0] / BACKENDS[0]).load("forward/new", "float32", LAYERS)
    entries = free.by_key()
    compared = 0
    for entry in alone.entries:
        if entry.rung == "output" and not entry.site.endswith("]"):
            # same backend, same inputs: the layer alone gives what it gave in the free run, where the channels
            # came last in memory, in which PyTorch's normalisations round more: measured 1.2e-5 of the largest
            expected = free.array(entries[entry.key])
            np.testing.assert_allclose(
                alone.array(entry), expected, rtol=0, atol=5e-5 * abs(expected).max(), err_msg=entry.key
            )
            compared += 1
    assert compared > 200

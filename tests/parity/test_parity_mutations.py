"""Test that planted faults are found and named, that controls pass, and that the table is up to date."""

import re
import types

import pytest
from support import shares
from support.backends import BACKENDS, ROOT
from support.parity_runs import parity

from guided_diffusion_core.errors import UserError
from parity.dump import PLAIN, Dump
from parity.faults import CONTROLS, FAULTS
from parity.medsegdiff import open_port
from parity.mutate import COLUMNS, Outcome, names, select_faults

TABLE = ROOT / "parity" / "MUTATIONS.md"
# The kinds of faults that ports are known for; each has to be among those planted.
KINDS = (
    "eps",
    "groups",
    "gelu",
    "relu",
    "transposed",
    "swapped-weights",
    "attention-scale",
    "softmax-axis",
    "swapped-skip",
    "dropped-skip",
    "off-by-one",
    "sine",
    "schedule",
    "variance-branch",
    "posterior",
    "zero-grad",
    "bias-correction",
    "eps-under-root",
    "coupled",
    "average-off",
    "average-before",
    "detached",
    "align-corners",
    "nearest",
    "momentum",
    "biased-variance",
    "evaluating",
    "dropout-scale",
    "nan",
    "stale-buffer",
    "batch-order",
    "dropped-microbatch",
    "clipped",
    "detached-fourier",
    "late-restart",
    "resumed-without",
    "validation-leaves",
    "augmentation-left-out",
    "augmented-image",
)


def faults_of(share):
    """Return the faults of a share, and all controls, in the order of the table."""
    faults = FAULTS if share == "all" else FAULTS[share - 1 :: shares.SHARES]
    return [*faults, *CONTROLS]


def rows(text):
    """Return name of the fault -> cells of its row in a Markdown table."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells] for cells in lines[2:]}


def test_the_known_kinds_of_faults_are_planted():
    known = [fault.name for fault in FAULTS]
    assert len(known) == len(set(known)) >= 30 and len(CONTROLS) >= 2
    assert [kind for kind in KINDS if not any(kind in name for name in known)] == []
    assert {"last-bit-noise", "reordered-sum"} <= {control.name for control in CONTROLS}


def test_the_table_lists_every_fault_and_control():
    table = rows(TABLE.read_text())
    assert list(table) == [fault.name for fault in FAULTS + CONTROLS]
    assert all(len(cells) == len(COLUMNS) for cells in table.values())
    for fault in FAULTS:
        _, about, caught, site, ratio = table[fault.name]
        assert about == fault.about and caught != "not caught"
        assert names(site.strip("`"), fault.site), fault.name
        assert ratio == "inf" or float(ratio) > 1
    assert all(table[control.name][2] == "harmless: no alarm" for control in CONTROLS)


def test_every_fault_can_be_planted(backend):
    """Require the function that a fault replaces, also for faults outside of this run's share."""
    port = open_port(backend.name)
    for fault in FAULTS + CONTROLS:
        with fault.plant(port):
            pass


@pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")
@pytest.mark.long(seconds=420)
def test_every_fault_of_this_runs_share_is_found_and_named(tmp_path, ladder):
    """Faults in the Jittor port, and all controls, give the rows of the table; only digits of ratios may differ."""
    share, _ = shares.chosen_share()
    chosen = [fault.name for fault in faults_of(share)]
    faults = len(chosen) - len(CONTROLS)
    reference = ladder[0] / BACKENDS[0]
    done = parity("mutate", *chosen, "--reference", reference, "--table", tmp_path / "table.md")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{faults} of {faults} faults found and named, 0 alarms on {len(CONTROLS)} controls" in done.stdout
    found = rows((tmp_path / "table.md").read_text())
    kept = rows(TABLE.read_text())
    assert list(found) == chosen
    for name, cells in found.items():
        assert cells[:4] == kept[name][:4], name
        if re.search(r"\d", kept[name][4]):
            assert 0.1 < float(cells[4]) / float(kept[name][4]) < 10, name
        else:
            assert cells[4] == kept[name][4], name


def test_the_shares_of_the_runs_are_all_faults(monkeypatch):
    monkeypatch.delenv(shares.VARIABLE, raising=False)
    planted = []
    for commits in range(400, 400 + shares.SHARES):
        monkeypatch.setattr(shares, "commit_count", lambda commits=commits: commits)
        share, _ = shares.chosen_share()
        faults = faults_of(share)[: -len(CONTROLS)]
        assert faults_of(share)[len(faults) :] == CONTROLS, "every run plants all controls"
        planted += faults
    assert sorted(fault.name for fault in planted) == sorted(fault.name for fault in FAULTS)
    assert faults_of("all") == FAULTS + CONTROLS


def test_a_share_can_be_chosen(monkeypatch):
    for asked, share in (("all", "all"), ("1", 1), (str(shares.SHARES), shares.SHARES)):
        monkeypatch.setenv(shares.VARIABLE, asked)
        assert shares.chosen_share() == (share, f"MEDSEGDIFF_FAULTS={asked}")
    for wrong in ("0", str(shares.SHARES + 1), "most", ""):
        monkeypatch.setenv(shares.VARIABLE, wrong)
        with pytest.raises(ValueError, match="expected all, or a number from 1 to 5"):
            shares.chosen_share()


def test_without_history_the_day_chooses_the_share(monkeypatch):
    monkeypatch.delenv(shares.VARIABLE, raising=False)
    monkeypatch.setattr(shares, "commit_count", lambda: 0)
    days = [1000.5 * 86400 + day * 86400 for day in range(shares.SHARES)]
    monkeypatch.setattr(shares.time, "time", lambda: days.pop())
    assert {shares.chosen_share()[0] for _ in range(shares.SHARES)} == set(range(1, shares.SHARES + 1))


def test_records_of_another_backend_are_refused_as_reference(tmp_path):
    name = BACKENDS[-1]
    Dump(tmp_path, name, {}, {}).add(("table/linear", "float32", PLAIN), "table")
    done = parity("mutate", "last-bit-noise", "--backend", name, "--reference", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"found a dump of {name}; expected one of" in done.stderr


@pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")
def test_faults_can_be_planted_in_either_backend():
    done = parity("mutate", "transposed-weight", "schedule-in-float32", "leaky-slope", "--backend", "pytorch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 3


@pytest.mark.parametrize(
    "site, expected, right",
    [
        ("out.0#0", "out.0", True),
        ("out.0#0[1]", "out.0", True),
        ("out.01#0", "out.0", False),
        ("out#0", "out.0", False),
        ("network#0", "network", True),
        ("update x, step 0", "update *", True),
        ("updates x", "update *", False),
        ("noise tape: draws 1 missing", "noise tape: *", True),
        ("gradient a.b, step 1", "gradient a.b, step 1", True),
        ("gradient a.b, step 0", "gradient a.b, step 1", False),
        ("state diffusion._variance#0 given 0", "state diffusion._variance#0.0", False),
    ],
)
def test_a_site_is_the_expected_one(site, expected, right):
    assert names(site, expected) is right


def test_an_outcome_is_right_only_if_caught_and_named():
    fault, harmless = (types.SimpleNamespace(name="a", about="b", site=site) for site in ("out.0", ""))
    assert Outcome(fault, "forward/new", "float32", "output", "out.0#0", 9.0).right
    assert not Outcome(fault, "forward/new", "float32", "output", "out.1#0", 9.0).right
    assert not Outcome(fault).right and Outcome(harmless).right
    assert not Outcome(harmless, "forward/new", "float32", "output", "out.0#0", 9.0).right


def test_parts_share_the_faults():
    every = [fault.name for fault in select_faults([], "1/1")]
    parts = [[fault.name for fault in select_faults([], f"{part}/3")] for part in (1, 2, 3)]
    assert sorted(sum(parts, [])) == sorted(every) and max(map(len, parts)) - min(map(len, parts)) <= 1
    for part in ("0/2", "3/2", "x", "1/0"):
        with pytest.raises(UserError, match="--part"):
            select_faults([], part)
    with pytest.raises(UserError, match="FAULT 'nothing'"):
        select_faults(["nothing"], "1/1")

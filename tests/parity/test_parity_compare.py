"""Test the comparison of dumps, which are made here without a framework: whatever is incomplete fails."""

import copy
import json

import numpy as np
import pytest

from guided_diffusion_core.errors import UserError
from parity.accepted_gaps import AcceptedGap
from parity.compare import compare_case, compare_dumps
from parity.dump import LAYERS, PERTURBED, PLAIN, Dump, Entry, Section, read_dump, section_stem, write_section
from parity.protocol import Case
from parity.result import EXIT_CODES, result_tree, stale_gaps, state_of
from parity.rule import distance
from parity.verdict import AGREE, DIVERGED, INCOMPLETE

CASE = "forward/made"
DRAWS = [["train/noise", 0, "0", 0, "aa"], ["train/noise", 0, "1", 0, "bb"], ["dropout/x", 0, "0", 0, "cc"]]


def made_section(precision="float32", variant=PLAIN, error=1e-7):
    """Make a section of a network of two layers; the precision and a relative error determine the values."""
    generator = np.random.default_rng([len(precision + variant), len(variant)])
    truth = np.random.default_rng(3)
    tensors = {}
    entries = []
    for rung, site, shape in (
        ("input", "first#0", (2, 8)),
        ("output", "first#0", (2, 8)),
        ("output", "second#0", (2, 4)),
        ("gradient", "first.weight", (8, 8)),
        ("loss", "total", ()),
    ):
        value = np.asarray(
            truth.standard_normal(shape) * (1 + error * generator.standard_normal(shape) * (precision == "float32"))
        )
        name = f"{rung}/{site}"
        tensors[name] = value.astype(precision)
        entries.append(Entry(rung, site, name, precision, shape))
    return Section(
        CASE,
        precision,
        variant,
        entries,
        copy.deepcopy(DRAWS),
        {},
        {"first": "Linear", "second": "Linear"},
        tensors=tensors,
        checks={"recording changes nothing": True},
        arguments={"first#0": {"pass": 0, "given": [{"input": 0}]}},
    )


def made_dump(folder, change=lambda section: None, keys=None, suite="made"):
    """Make a dump with every run that a reference needs; change(section) is applied to each."""
    folder.mkdir(parents=True, exist_ok=True)
    dump = Dump(folder, folder.name, {"framework": "1"}, {"suite": suite})
    for precision, variant in keys or [
        (precision, variant) for precision in ("float64", "float32") for variant in (PLAIN, *PERTURBED[PLAIN])
    ]:
        section = made_section(precision, variant)
        change(section)
        if variant in PERTURBED[PLAIN]:
            truth = made_section("float64", PLAIN)
            change(truth)
            section.errors = {
                entry.key: list(distance(truth.array(entry), section.array(entry)))
                for entry in section.entries
                if section.array(entry).dtype.kind == "f"
            }
            section.entries = []
            section.tensors = {}
        write_section(folder, section)
        dump.add(section.key, section_stem(*section.key))
    return read_dump(folder)


@pytest.fixture
def reference(tmp_path):
    return made_dump(tmp_path / "reference")


def verdict_of(reference, tmp_path, change, precision="float32"):
    return compare_case(reference, made_dump(tmp_path / "candidate", change), CASE, precision)


def replace_entry(section, key, **values):
    k = next(k for k, entry in enumerate(section.entries) if entry.key == key)
    old = section.entries[k]
    section.entries[k] = Entry(**{**vars(old), **values})


def test_equal_dumps_agree(reference, tmp_path):
    for precision in ("float64", "float32"):
        verdict = verdict_of(reference, tmp_path, lambda section: None, precision)
        assert verdict.state == AGREE and len(verdict.rows) == 5
        assert max(row.ratio for row in verdict.rows) < (0.1 if precision == "float32" else 1e-300)
        assert all(row.ulps == (0, 0, 0) for row in verdict.rows)


@pytest.mark.parametrize("precision, size", [("float32", 1e-3), ("float64", 1e-9)])
def test_a_wrong_tensor_is_the_first_difference(reference, tmp_path, precision, size):
    def change(section):
        section.tensors["output/second#0"][0, 1] += size
        section.tensors["gradient/first.weight"] *= 2

    verdict = verdict_of(reference, tmp_path, change, precision)
    assert verdict.state == DIVERGED
    assert (verdict.first.rung, verdict.first.site) == ("output", "second#0")
    assert verdict.worst.site == "first.weight"


def drop(section):
    del section.entries[1]


def add(section):
    section.entries.append(Entry("output", "third#0", "output/second#0", section.precision, (2, 4)))


def swap(section):
    section.entries[1], section.entries[2] = section.entries[2], section.entries[1]


def reshape(section):
    section.tensors["output/second#0"] = section.tensors["output/second#0"].T
    replace_entry(section, "output/second#0", shape=(4, 2))


def retype(section):
    section.tensors["output/second#0"] = section.tensors["output/second#0"].astype(np.float16)
    replace_entry(section, "output/second#0", dtype="float16")


STRUCTURE = {
    "tensor output/first#0 is missing": drop,
    "tensor output/third#0 is not in the reference": add,
    "tensors in another order, from output/second#0 on": swap,
    "output/second#0: float32 [4, 2], the reference has float32 [2, 4]": reshape,
    "output/second#0: float16 [2, 4], the reference has float32": retype,
    "module second is missing": lambda section: section.types.pop("second"),
    "module third is not in the reference": lambda section: section.types.update(third="Linear"),
    "module second is never called in the candidate": lambda section: section.uncalled.append("second"),
    "candidate: the check 'recording changes nothing' failed": lambda section: section.checks.update(
        {"recording changes nothing": False}
    ),
    "call first#0 is missing": lambda section: section.arguments.clear(),
    "call first#0 has other arguments": lambda section: section.arguments["first#0"].update(given=[None]),
    "forward passes in other contexts": lambda section: section.contexts.append({"step": 1}),
    "1 missing, 0 more than in the reference; first at number 2: dropout/x": lambda section: section.draws.pop(),
    "0 missing, 1 more than in the reference; first at number 3": lambda section: section.draws.append(
        ["late", 0, "0", 0, "dd"]
    ),
    "draws in another order; first at number 0: train/noise, step 0, case 1": lambda section: section.draws.insert(
        0, section.draws.pop(1)
    ),
    "1 missing, 1 more": lambda section: section.draws.__setitem__(0, ["train/noise", 1, "0", 0, "aa"]),
}


@pytest.mark.parametrize("problem", STRUCTURE)
def test_whatever_has_no_partner_fails(reference, tmp_path, problem):
    verdict = verdict_of(reference, tmp_path, STRUCTURE[problem])
    assert verdict.state == DIVERGED
    assert any(problem in found for found in verdict.problems), verdict.problems


def test_a_repeated_draw_more_than_in_the_reference_fails(reference, tmp_path):
    verdict = verdict_of(reference, tmp_path, lambda section: section.draws.append(section.draws[-1]))
    assert verdict.state == DIVERGED and "noise tape" in verdict.problems[0]


def test_zeros_in_both_fail(tmp_path):
    def zero(section):
        section.tensors["output/second#0"][:] = 0

    verdict = compare_case(made_dump(tmp_path / "a", zero), made_dump(tmp_path / "b", zero), CASE, "float32")
    assert verdict.first.problem == "all zero in both"


def test_other_precision_than_the_runs_fails(tmp_path):
    def narrow(section):
        section.tensors["output/second#0"] = section.tensors["output/second#0"].astype(np.float32)
        replace_entry(section, "output/second#0", dtype="float32")

    verdict = compare_case(made_dump(tmp_path / "a", narrow), made_dump(tmp_path / "b", narrow), CASE, "float64")
    assert verdict.first.problem == "float32 in a run in float64"


def test_accepted_gaps_are_used_and_stale_ones_fail(tmp_path, monkeypatch):
    rows = [
        AcceptedGap("uncalled", "forward/*", "sec*", "why", "where", "made"),
        AcceptedGap("all zero", "forward/*", "output/never", "why", "where", "made"),
        AcceptedGap("all zero", "forward/*", "output/never", "why", "where", "another suite"),
    ]
    monkeypatch.setattr("parity.verdict.ACCEPTED_GAPS", tuple(rows))
    monkeypatch.setattr("parity.result.ACCEPTED_GAPS", tuple(rows))
    change = STRUCTURE["module second is never called in the candidate"]
    verdict = compare_case(made_dump(tmp_path / "a", change), made_dump(tmp_path / "b", change), CASE, "float32")
    assert verdict.state == AGREE
    stale = stale_gaps([verdict])
    assert len(stale) == 1 and "output/never" in stale[0]
    assert state_of([verdict], stale) == DIVERGED


@pytest.mark.parametrize(
    "keys, missing",
    [
        ([("float32", PLAIN)], "reference in float64"),
        ([("float64", PLAIN), ("float32", PLAIN)], "own error"),
        ([("float64", PLAIN), ("float32", PLAIN), ("float32", PERTURBED[PLAIN][0])], "own error"),
    ],
)
def test_a_reference_without_its_runs_is_incomplete(tmp_path, keys, missing):
    reference = made_dump(tmp_path / "reference", keys=keys)
    verdict = compare_case(reference, made_dump(tmp_path / "candidate"), CASE, "float32")
    assert verdict.state == INCOMPLETE and missing in verdict.missing[0]


def summed_alone(folder, errors, who):
    """Make a dump of one layer by itself: one number, a sum of 3e4 numbers that nearly cancel.

    errors: variant -> relative error of the number in float32; a reference has all variants.
    """
    folder.mkdir()
    dump = Dump(folder, who, {}, {})
    for precision, variant, error in (("float64", LAYERS, 0.0), *(("float32", *pair) for pair in errors.items())):
        section = Section("gradients/made", precision, variant)
        if variant == LAYERS:
            section.tensors = {"sum": np.array([3.0 * (1 + error)], precision)}
            section.entries = [Entry("gradient", "first#0.bias", "sum", precision, (1,))]
        else:
            section.errors = {"gradient/first#0.bias": [3.0 * error, 3.0 * error]}
        write_section(folder, section)
        dump.add(section.key, section_stem(*section.key))
    return read_dump(folder)


@pytest.mark.parametrize(
    "error, draws, state",
    [
        (1e-5, (0.0, 0.0, 0.0), DIVERGED),
        (1e-5, (2e-6, 1e-8, 0.0), AGREE),
        (1e-5, (0.0, 1e-8, 2e-6), AGREE),
        (1e-4, (0.0, 1e-8, 2e-6), DIVERGED),
        (0.0, (2e-6, 2e-6), INCOMPLETE),
    ],
)
def test_one_lucky_run_of_a_layer_alone_does_not_decide(tmp_path, error, draws, state):
    """The reference's plain run is exact by luck; any draw that is not exact determines what is allowed."""
    reference = summed_alone(tmp_path / "a", {LAYERS: 0.0, **dict(zip(PERTURBED[LAYERS], draws))}, "reference")
    candidate = summed_alone(tmp_path / "b", {LAYERS: error}, "candidate")
    verdict = compare_case(reference, candidate, "gradients/made", "float32", LAYERS)
    assert verdict.state == state
    assert bool(verdict.missing) is (state == INCOMPLETE)


def test_a_candidate_that_did_not_run_is_incomplete(reference, tmp_path):
    candidate = made_dump(tmp_path / "candidate", keys=[("float32", PLAIN)])
    cases = [Case(CASE, "")]
    verdicts = compare_dumps(reference, candidate, cases)
    assert [verdict.state for verdict in verdicts] == [INCOMPLETE, AGREE]
    assert EXIT_CODES[result_tree("made", reference, candidate, verdicts)["state"]] == 2
    assert [verdict.precision for verdict in compare_dumps(reference, candidate)] == ["float32"]
    assert state_of([], []) == INCOMPLETE


def test_a_case_that_only_one_has_is_incomplete(reference, tmp_path):
    def rename(section):
        section.case = "forward/other"

    verdicts = compare_dumps(reference, made_dump(tmp_path / "candidate", rename))
    assert {(verdict.case, verdict.state) for verdict in verdicts} == {
        (CASE, INCOMPLETE),
        ("forward/other", INCOMPLETE),
    }


def test_empty_and_zero_dumps_are_errors(reference, tmp_path):
    def empty(section):
        section.entries.clear()

    def zero(section):
        for array in section.tensors.values():
            array[...] = 0

    with pytest.raises(UserError, match="found no entry"):
        verdict_of(reference, tmp_path, empty)
    with pytest.raises(UserError, match="found nothing but zeros"):
        verdict_of(reference, tmp_path, zero)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="manifest.json: found no readable file"):
        read_dump(tmp_path / "none")
    Dump(tmp_path / "none", "x", {}, {}).add((CASE, "float32", PLAIN), "x")
    manifest = json.loads((tmp_path / "none/manifest.json").read_text())
    (tmp_path / "none/manifest.json").write_text(json.dumps({**manifest, "sections": []}))
    with pytest.raises(UserError, match="found no section"):
        read_dump(tmp_path / "none")


def broken_files(folder):
    stem = folder / section_stem(CASE, "float32", PLAIN)
    manifest = folder / "manifest.json"
    entries = stem.with_suffix(".json")
    tensors = stem.with_suffix(".safetensors")
    return {
        "other format": (manifest, manifest.read_text().replace("parity-dump", "something").encode()),
        "cut manifest": (manifest, manifest.read_bytes()[:-30]),
        "manifest of a list": (manifest, b"[]"),
        "cut entries": (entries, entries.read_bytes()[:-30]),
        "unknown key": (entries, entries.read_bytes().replace(b'"checks"', b'"cheques"')),
        "recorded twice": (entries, entries.read_bytes().replace(b'"second#0"', b'"first#0"')),
        "cut tensors": (tensors, tensors.read_bytes()[:-30]),
        "other shape": (entries, entries.read_bytes().replace(b"8\n]", b"9\n]", 1)),
        "no tensor": (entries, entries.read_bytes().replace(b'"tensor": "loss/total"', b'"tensor": "loss/gone"')),
    }


def test_broken_files_are_named(tmp_path):
    folder = tmp_path / "dump"
    made_dump(folder)
    for path, content in broken_files(folder).values():
        whole = path.read_bytes()
        assert whole != content, "the fault changes the file"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{folder}/(manifest|forward-made-float32-plain)"):
            read_dump(folder).load(CASE, "float32", PLAIN)
        path.write_bytes(whole)


def made_masks(flipped=(), score=None):
    """Return a change that turns a section into one of masks with some pixels flipped."""
    probability = np.random.default_rng(4).uniform(0, 1, (6, 6))
    probability[0, 0] = 0.5 + 1e-8

    def change(section):
        mask = probability >= 0.5
        for place in flipped:
            mask[place] = ~mask[place]
        truth = np.random.default_rng(5).uniform(0, 1, (6, 6)) > 0.5
        overlap = 2 * np.sum(mask & truth) / (np.sum(mask) + np.sum(truth))
        arrays = {
            "probability/a": probability.astype(np.float32),
            "mask/a": mask,
            "truth/a": truth,
            "score/a dice": np.float64(overlap if score is None else score),
            "table/threshold": np.float64(0.5),
        }
        section.tensors = {name: np.asarray(value) for name, value in arrays.items()}
        section.entries = [
            Entry(*name.split("/"), name, str(value.dtype), value.shape) for name, value in section.tensors.items()
        ]

    return change


@pytest.mark.parametrize(
    "flipped, score, first",
    [
        ((), None, None),
        (((0, 0),), None, None),
        (((1, 1),), None, ("mask", "a")),
        ((), 0.123, ("score", "a dice")),
    ],
)
def test_masks_and_scores(tmp_path, flipped, score, first):
    reference = made_dump(tmp_path / "reference", made_masks())
    verdict = compare_case(reference, made_dump(tmp_path / "candidate", made_masks(flipped, score)), CASE, "float32")
    assert (verdict.first and (verdict.first.rung, verdict.first.site)) == first
    assert not verdict.problems

"""Test the report of a comparison: its content, and that it needs no other files."""

import base64
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from support.pages import HOSTILE, TAGS, Page

from parity.dump import Dump, Entry, Section, write_section
from parity.report import write_report
from parity.verdict import Row, Verdict


def row(rung, site, ratio=0.05, error=1e-7, own=2e-7, problem=""):
    return Row(rung, site, ratio, error, own, (0.0, 0.0, 0.0), 1.0, problem)


def verdict(case, rows, precision="float32", variant="plain", **more):
    return Verdict(case, precision, variant=variant, rows=rows, **more).to_dict()


def result_of(verdicts, state="agree", **more):
    sides = {
        side: {"backend": backend, "versions": {"python": "3.11", backend: "2.0"}, "flags": {"threads": "1"}}
        for side, backend in (("reference", "pytorch"), ("candidate", "jittor"))
    }
    rule = {"multiple": 8.0, "last_places": 16.0, "gate_last_places": 512.0}
    return {
        "state": state,
        "suite": "a.suite",
        "rule": rule,
        **sides,
        "verdicts": verdicts,
        "located": [],
        "stale": [],
        "problems": [],
        **more,
    }


LAYERS = verdict(
    "forward/a",
    variant="layers",
    rows=[
        row("output", "network#0", 0.2),
        row("output", "stem.0#0", 0.123),
        row("output", "deep.1.inner.conv#0[1]", 7.5),
        row("output", "deep.1.inner.norm#0"),
        row("buffer", "deep.1.inner.norm#0.running_mean", 0.9),
        row("gradient", "deep.1.inner.norm#0.weight", math.inf),
    ],
)
PLAIN = verdict(
    "forward/a",
    [row("output", f"stem.0#{k}", 0.3, error) for k, error in enumerate((1e-7, 0.0, math.nan, math.inf, 1e9))],
)
STEPS = verdict(
    "steps/a", [row(rung, f"w, step {step}") for step in range(2) for rung in ("loss", "update", "gradient")]
)
SAMPLING = verdict("sampling/a", [row("state", f"solver.step#{k}.sample") for k in range(3)])
MASKS = verdict("masks/a", [row("mask", "first"), row("mask", "second")])


def dump(folder, backend, masks=None):
    """Make a dump of the case masks/a from name -> mask."""
    folder.mkdir()
    found = Dump(folder, backend, {}, {})
    if masks:
        section = Section("masks/a", "float32")
        for name, mask in masks.items():
            for rung, array in (("probability", mask * np.float32(0.75)), ("mask", mask)):
                section.tensors[f"{rung}/{name}"] = array
                section.entries.append(Entry(rung, name, f"{rung}/{name}", str(array.dtype), array.shape))
        write_section(folder, section)
        found.add(section.key, "masks-a-float32-plain")
    return found


@pytest.fixture
def page(tmp_path):
    """Return a function (result, reference's masks, candidate's masks) -> `Page` of the report."""

    def make(result, masks=None, others=None):
        path = tmp_path / "report.html"
        write_report(
            result, dump(tmp_path / "reference", "pytorch", masks), dump(tmp_path / "candidate", "jittor", others), path
        )
        return Page(path)

    return make


def picture(image):
    """Return the pixels of an image of a page."""
    return np.asarray(Image.open(io.BytesIO(content(image, "image/png"))).convert("RGB")).astype(int)


def content(image, mime):
    head, _, data = image["src"].partition(",")
    assert head == f"data:{mime};base64"
    return base64.b64decode(data)


CULPRIT = {
    "case": "forward/a",
    "site": "deep.1#0",
    "direction": "forward",
    "precision": "float32",
    "ratio": 7.5,
    "text": "deep.1#0 adds the first error",
}
UNRECORDED = verdict("forward/a", [], missing=["forward/a: no record of jittor in float32"])


@pytest.mark.parametrize(
    "result, head",
    [
        (
            result_of([PLAIN, STEPS, SAMPLING]),
            "Agree 3 cases, 14 tensors compared; largest ratio 0.3, the rule allows 1. Cases",
        ),
        (
            result_of([PLAIN, LAYERS], "diverged", located=[CULPRIT]),
            "Diverged 1 case, 11 tensors compared; largest ratio inf, the rule allows 1. First: deep.1#0 adds",
        ),
        (
            result_of([PLAIN, LAYERS], "diverged"),
            "First: forward/a in float32: output deep.1.inner.conv#0[1]: ratio 7.5",
        ),
        (
            result_of([verdict("forward/a", [row("output", "x#0", math.nan, problem="NaN there")])], "diverged"),
            "largest ratio nan, the rule allows 1. First: forward/a in float32: output x#0: ratio nan, NaN there",
        ),
        (
            result_of([verdict("forward/a", [row("output", "x#0")], problems=["module y is missing"])], "diverged"),
            "First: forward/a in float32: module y is missing",
        ),
        (
            result_of([UNRECORDED], "incomplete", problems=UNRECORDED["missing"]),
            "Incomplete 1 case, 0 tensors compared. First: forward/a: no record of jittor in float32 Cases",
        ),
        (
            result_of([PLAIN], "diverged", stale=["an old row"]),
            "First: an old row Ledger rows that no case needed an old row",
        ),
        (result_of([], "incomplete"), "Incomplete 0 cases, 0 tensors compared. Cases No case was compared."),
    ],
    ids=["agree", "located", "first row", "nan", "problem", "incomplete", "stale", "empty"],
)
def test_verdict_and_what_to_look_at_first(page, result, head):
    found = page(result)
    assert head in found.text
    assert ("class", f"verdict {result['state']}") in found.attributes
    assert ("lang", "en") in found.attributes and "h1" in found.tags


def test_a_result_read_back_from_json_gives_the_same_report(page, tmp_path):
    result = result_of([PLAIN, LAYERS, STEPS], "diverged", located=[CULPRIT])
    source = page(result).source
    for name in ("reference", "candidate"):
        shutil.rmtree(tmp_path / name)
    assert page(json.loads(json.dumps(result))).source == source


def test_the_page_asks_for_nothing_from_outside(page):
    masks = {"first": np.eye(8, dtype=bool)}
    verdicts = [PLAIN, LAYERS, STEPS, SAMPLING, MASKS]
    found = page(result_of(verdicts, "diverged"), masks, {"first": ~masks["first"]})
    assert not re.search(r"https?:|://|url\(|@import", found.source, re.IGNORECASE)
    assert set(found.tags) <= TAGS
    names = {name for name, _ in found.attributes}
    assert not names & {"href", "srcset", "action"} and not any(name.startswith("on") for name in names)
    assert len(found.images) == 4 and all(image["src"].startswith("data:image/") for image in found.images)
    assert all(image["alt"].strip() for image in found.images)


def test_every_text_is_escaped(page):
    case = f"forward/{HOSTILE}"
    masks = {HOSTILE: np.eye(4, dtype=bool)}
    verdicts = [
        verdict(
            case,
            [row("output", f"{HOSTILE}.x#0", 3.0, problem=HOSTILE), row("output", "y#0")],
            variant=variant,
            problems=[f"problem {HOSTILE}"],
            missing=[f"missing {HOSTILE}"],
        )
        for variant in ("plain", "layers")
    ] + [MASKS]
    result = result_of(
        verdicts,
        "diverged",
        located=[{**CULPRIT, "text": HOSTILE, "site": HOSTILE}],
        stale=[HOSTILE],
        problems=[HOSTILE],
        suite=HOSTILE,
    )
    result["candidate"] |= {"backend": HOSTILE, "versions": {HOSTILE: HOSTILE}, "flags": {HOSTILE: HOSTILE}}
    found = page(result, masks, {HOSTILE: ~masks[HOSTILE]})
    assert "<script" not in found.source and set(found.tags) <= TAGS
    assert found.text.count(HOSTILE) > 20
    assert f"{HOSTILE}.x" in found.modules
    assert ("title", f"forward float32: output {HOSTILE}.x#0, {HOSTILE}") in found.attributes


def test_tree_shows_what_each_layer_adds(page):
    found = page(result_of([PLAIN, LAYERS], "diverged"))
    assert found.modules == {
        "network": (["0.2", "(inf)"], False),
        "stem": (["(0.123)", "–"], False),
        "stem.0": (["0.123", "–"], True),  # folded: nothing in it breaks the rule
        "deep": (["(7.5)", "(inf)"], False),
        "deep.1": (["(7.5)", "(inf)"], False),
        "deep.1.inner": (["(7.5)", "(inf)"], False),
        "deep.1.inner.conv": (["7.5", "–"], False),
        "deep.1.inner.norm": (["0.9", "inf"], False),
    }
    assert "Module forward float32 backward float32" in found.text
    assert "every layer ran by itself" in found.text and "2 of 4 modules above 1" in found.text
    assert re.findall(r'class="cell l(\d)"', found.source) == [*"15", *"11", *"35" * 3, *"325"]


def test_tree_of_the_case_as_it_ran_where_no_layer_ran_alone(page):
    rows = [
        row("output", "a.0#0", 0.01),
        row("gradient", "a.0.weight", 0.2),
        row("input gradient", "a.0#0", 0.3),
        row("gradient", "scale", 0.5),
        row("output gradient", "a.0#0", 9.0),
        row("result", "out", 9.0),
    ]
    found = page(result_of([verdict("gradients/a", rows, precision) for precision in ("float64", "float32")]))
    assert "It includes errors from earlier layers" in found.text
    assert found.modules["a.0"] == (["0.01", "0.01", "0.3", "0.3"], True)
    assert found.modules["network"][0] == ["(0.01)", "(0.01)", "0.5", "0.5"]
    assert "out" not in found.modules


def test_tree_only_where_layers_were_recorded(page):
    found = page(result_of([STEPS, SAMPLING, MASKS]))
    assert not found.modules and "Layers" not in found.text


def test_problems_of_a_case_stand_below_it_many_of_them_folded(page):
    problems = [f"gone {k}" for k in range(9)]
    found = page(result_of([verdict("forward/a", [row("output", "x#0")], problems=problems)], "diverged"))
    table = found.source[found.source.index("<tbody>") :]
    before, after = table.split("<summary>4 more</summary>")
    assert [re.findall("<li>(.*)</li>", part) for part in (before, after)] == [problems[:5], problems[5:]]


def test_curves_for_the_families_that_were_compared(page):
    rows = [row("output", f"x#{error}", error=error) for error in (math.inf, 5.0)]
    gate = verdict("forward/a", rows, "float64")
    found = page(result_of([gate, PLAIN, LAYERS, STEPS, SAMPLING]))
    for title in (
        "Error against depth: forward/a",
        "Error against training step: steps/a",
        "Error against sampling step: sampling/a",
    ):
        assert found.text.count(title) == 1
    assert len(found.images) == 3
    for image in found.images:
        assert b"<svg" in content(image, "image/svg+xml")
    depth, training, _ = [image["alt"] for image in found.images]
    # inf and NaN are left out, 1e9 is drawn at the edge
    assert depth == (
        "Relative error against call number. float64: largest 5 of jittor, 2e-07 of pytorch; "
        "float32: largest 1e+03 of jittor, 2e-07 of pytorch."
    )
    assert training == (
        "Relative error against training step. float32, loss: largest 1e-07 of jittor, 2e-07 of pytorch; "
        "float32, update: largest 1e-07 of jittor, 2e-07 of pytorch."
    )


def test_no_curves_without_rows(page):
    found = page(
        result_of([verdict("weights/a", [row("weight", "x")]), MASKS, verdict("forward/a", [], missing=["no record"])])
    )
    assert not found.images and "Growth of the error" not in found.text


def test_exact_values_only_still_make_a_picture(page):
    rows = [row("state", "solver.step#0.sample", 0.0, 0.0, 0.0)]
    found = page(result_of([verdict("sampling/a", rows)]))
    assert len(found.images) == 1 and "largest 0 of jittor" in found.images[0]["alt"]


def test_masks_that_agree_need_no_picture(page):
    masks = {"first": np.eye(8, dtype=bool), "second": np.ones((4, 6), bool)}
    found = page(result_of([MASKS]), masks, masks)
    assert "No pixel differs in 2 masks of 88 pixels." in found.text and not found.images


def test_masks_that_differ_are_shown_in_red(page):
    masks = {"first": np.eye(8, dtype=bool), "second": np.ones((4, 6), bool)}
    others = {"first": masks["first"].copy(), "second": masks["second"]}
    others["first"][2, 5:7] = True
    found = page(result_of([MASKS], "diverged"), masks, others)
    assert "2 of 88 pixels differ, in 1 of 2 masks." in found.text
    assert "first: 2 of 64 pixels differ." in found.text and len(found.images) == 1
    pixels = picture(found.images[0])
    red = np.count_nonzero((pixels[..., 0] > 150) & (pixels[..., 1:].max(-1) < 60))
    panel = pixels.shape[1] / 4  # width of one of four
    assert 0.5 * 2 / 64 * panel**2 < red < 2 / 64 * panel**2


def test_of_a_volume_at_most_four_slices_are_shown(page):
    mask = np.zeros((6, 8, 9), bool)
    mask[0] = True
    other = mask.copy()
    for z in (1, 2, 3, 5, 8):
        other[1 : 2 + z, 3, z] = True
    found = page(result_of([MASKS], "diverged"), {"first": mask}, {"first": other})
    assert "first: 19 of 432 pixels differ; slices 2, 3, 5, 8 of 5 that differ." in found.text


def test_masks_without_record_or_partner(page):
    found = page(result_of([MASKS], "incomplete"), {"first": np.eye(8, dtype=bool)})
    assert "Not compared: one of the records is missing." in found.text


def test_masks_of_another_shape_are_left_to_the_problems(page):
    masks = {"first": np.eye(8, dtype=bool), "second": np.eye(8, dtype=bool)}
    found = page(result_of([MASKS], "diverged"), masks, {"first": np.eye(9, dtype=bool)})
    assert "No pixel differs in 0 masks of 0 pixels." in found.text


def test_versions_flags_and_rule(page):
    found = page(result_of([PLAIN]))
    assert "python 3.11 3.11 pytorch 2.0 – jittor – 2.0" in found.text
    assert "threads 1 1" in found.text
    assert "by 8 times what pytorch's own rounding does" in found.text
    assert "16 eps of its scale in float32, 512 eps in float64" in found.text
    assert "parity/README.md says from which runs the multiples come." in found.text


def test_a_browser_shows_it(page, browser, tmp_path):
    masks = {"first": np.eye(8, dtype=bool)}
    page(
        result_of([PLAIN, LAYERS, STEPS, SAMPLING, MASKS], "diverged", located=[CULPRIT]),
        masks,
        {"first": ~masks["first"]},
    )

    def run(*flags):
        return subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--window-size=1000,3000",
                f"--user-data-dir={tmp_path / 'profile'}",
                *flags,
                (tmp_path / "report.html").as_uri(),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout

    shown = tmp_path / "shown.html"
    shown.write_text(run("--dump-dom"), encoding="utf-8")
    found = Page(shown)
    assert "Diverged 4 cases, 22 tensors compared" in found.text
    assert found.modules["deep.1.inner.norm"] == (["0.9", "inf"], False)
    run(f"--screenshot={tmp_path / 'shown.png'}")
    pixels = np.asarray(Image.open(tmp_path / "shown.png").convert("RGB")).astype(int)
    assert pixels.shape == (3000, 1000, 3)
    reddish = (pixels[..., 0] - pixels[..., 1] > 15) & (pixels[..., 0] > 140)
    assert reddish[:400].mean() > 0.1, "the verdict has no colour"
    assert (pixels[400:].min(-1) < 100).mean() > 0.005, "no text below the verdict"

"""Test the command `python -m parity`: errors, resuming, recording of one backend, listing."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.backends import BACKENDS, ROOT
from support.parity_runs import parity, result_of

from parity import run
from parity.dump import LAYERS, PERTURBED, PLAIN, read_dump
from parity.medsegdiff import CASES
from parity.worker import perturbed

both = pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")


def test_list_names_every_case_with_what_it_is():
    done = parity("list")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [case.name for case in CASES]
    assert all(case.about in line for case, line in zip(CASES, lines))


@pytest.mark.parametrize(
    "args, message",
    [
        (["run", "forwards"], "CASE 'forwards': found no case of that name; expected all, or one of weights/new"),
        (["run", "all", "--backends", "pytorch,tensorflow"], "--backends: found 'tensorflow'; expected names among"),
        (
            ["run", "all", "--backends", "pytorch,pytorch@gpu"],
            "--device: found 'gpu'; expected auto, cpu, cuda",
        ),
        (
            ["run", "all", "--precision", "float16"],
            "--precision: found 'float16'; expected names among float64, float32",
        ),
        (["run", "all", "--suite", "no.such.suite"], "--suite no.such.suite: found no module"),
        (["run", "all", "--suite", "json"], "--suite json: found a module without CASES, weights, inputs, open_port"),
        (["run", "all", "--threads", "0"], "--threads: found 0; expected at least 1"),
        (["run", "all", "--presision", "float64"], "unknown flag --presision; did you mean --precision?"),
        (["compare", "nowhere", "nowhere"], "nowhere/manifest.json: found no readable file"),
        (["report", "nowhere"], "nowhere/result.json: found no result"),
        (["mutate", "no-such-fault"], "FAULT 'no-such-fault': found no fault of that name"),
        (["mutate", "--part", "3/2"], "--part: found '3/2'; expected I/N"),
        (["lost"], "unknown command lost; did you mean list?"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_input_is_one_clear_error(tmp_path, args, message):
    done = parity(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_fails_ends_the_run_with_its_message(tmp_path):
    """If a framework is missing, the message says what to install."""
    hidden = tmp_path / "hidden" / ("torch" if BACKENDS[0] == "pytorch" else "jittor")
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text(f"raise ModuleNotFoundError('hidden', name='{hidden.name}')")
    environment = {**os.environ, "PYTHONPATH": f"{hidden.parent}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "parity", "run", "weights/new", "--backends", BACKENDS[0]],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2, done.stdout
    assert "is not installed" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def one_recorded(tmp_path_factory):
    """Folder of a run that recorded two cases of the first backend, and the finished process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    return folder, parity("run", "table/linear", "weights/new", "--backends", BACKENDS[0], "--out_dir", folder)


def test_one_backend_is_recorded_for_a_later_comparison(one_recorded):
    out_dir, done = one_recorded
    name = BACKENDS[0]
    assert done.returncode == 0, done.stderr
    assert "compare it with: python -m parity compare" in done.stdout
    dump = read_dump(out_dir / name)
    assert set(dump.files) == {
        (case, precision, variant)
        for case in ("table/linear", "weights/new")
        for precision in ("float64", "float32")
        for variant in (PLAIN, *PERTURBED[PLAIN])
    }
    done = parity("compare", out_dir / name, out_dir / name)
    assert done.returncode == 0 and done.stdout.endswith(f"agree: {name} against {name}, 4 comparisons, 596 tensors\n")


@both
def test_what_was_not_recorded_makes_the_result_incomplete(one_recorded, tmp_path):
    assert parity("run", "table/linear", "--backends", BACKENDS[1], "--out_dir", tmp_path).returncode == 0
    done = parity("compare", one_recorded[0] / BACKENDS[0], tmp_path / BACKENDS[1], "--out_dir", tmp_path / "result")
    assert done.returncode == 2, done.stdout
    assert f"weights/new: no record of {BACKENDS[1]} in float64" in done.stdout
    assert result_of(tmp_path / "result")["state"] == "incomplete"
    assert "Incomplete" in (tmp_path / "result" / "report.html").read_text()


@both
def test_an_interrupted_run_goes_on(tmp_path):
    cases = ("table/linear", "table/cosine", "weights/new", "forward/new")
    command = [sys.executable, "-m", "parity", "run", *cases, "--out_dir", str(tmp_path / "run")]
    manifest = tmp_path / "run" / BACKENDS[0] / "manifest.json"
    # a job in the background of a shell is started with the signal ignored, and hands that down
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not manifest.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
    assert process.returncode == 130, output
    recorded = read_dump(manifest.parent)
    assert recorded.files and len(recorded.files) < 24, "interrupted on the way"
    stamps = {stem: (manifest.parent / f"{stem}.json").stat().st_mtime_ns for stem in recorded.files.values()}

    refused = parity("run", *cases, "--out_dir", tmp_path / "run")
    assert refused.returncode == 2 and "add --resume to go on with that run" in refused.stderr
    done = parity("run", *cases, "--out_dir", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {stem: (manifest.parent / f"{stem}.json").stat().st_mtime_ns for stem in stamps} == stamps
    assert len(result_of(tmp_path / "run")["verdicts"]) == 8


def test_the_reference_is_recorded_with_its_own_error():
    case = next(case for case in CASES if case.name == "forward/full-size")
    jobs = [(job.precision, job.variant) for job in run.jobs_of(case, ("float64", "float32"), True, "folder")]
    assert jobs == [("float64", PLAIN), ("float32", PLAIN), *(("float32", variant) for variant in PERTURBED[PLAIN])]
    assert [job.precision for job in run.jobs_of(case, ("float64", "float32"), False, "folder")] == ["float32"]


def test_layers_alone_of_the_reference_are_recorded_with_their_own_error():
    case = next(case for case in CASES if case.name == "gradients/new")
    jobs = run.layer_jobs(case, "folder", True)
    assert [(job.precision, job.variant) for job in jobs] == [
        ("float32", LAYERS),
        ("float64", LAYERS),
        *(("float32", variant) for variant in PERTURBED[LAYERS]),
    ]
    assert {job.source for job in jobs} == {"folder/gradients-new-float32-plain"}
    assert [job.truth for job in jobs] == [
        None,
        None,
        *["folder/gradients-new-float64-layers"] * len(PERTURBED[LAYERS]),
    ]
    assert [job.variant for job in run.layer_jobs(case, "folder", False, "fault")] == [LAYERS, LAYERS]


def test_every_number_of_a_perturbed_run_changes_by_one_ulp():
    """All weights change in one direction; for layers, each at random in each draw. Zeros and integers stay."""
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    values[7] = 0.0
    values[8] = values[9]
    arrays = {"a": values, "b": -values, "count": np.array([3, 4])}
    assert perturbed(arrays, PLAIN, "float32") is arrays and perturbed(arrays, LAYERS, "float32") is arrays
    directions = {}
    for variant in (*PERTURBED[PLAIN], *PERTURBED[LAYERS]):
        for precision in ("float32", "float64"):
            found = perturbed(arrays, variant, precision)
            np.testing.assert_array_equal(found["count"], [3, 4])
            for name in "ab":
                assert found[name].dtype == precision and found[name][7] == 0
                up, down = (np.nextafter(arrays[name].astype(precision), np.array(way, precision)) for way in (9, -9))
                np.testing.assert_array_equal(np.delete((found[name] == up) | (found[name] == down), 7), True)
                directions[variant, precision, name] = np.delete(found[name] == up, 7)
    up, down = PERTURBED[PLAIN]
    assert all(
        np.all(directions[up, "float32", name]) and not np.any(directions[down, "float32", name]) for name in "ab"
    )
    drawn = [directions[variant, "float32", name] for variant in PERTURBED[LAYERS] for name in "ab"]
    assert all(450 < np.sum(one) < 550 for one in drawn), "as many up as down"
    assert all(one[7] == one[8] for one in drawn), "equal numbers stay equal"
    assert all(400 < np.sum(one != other) < 600 for k, one in enumerate(drawn) for other in drawn[:k])


def test_comparing_imports_no_framework():
    code = (
        "import sys, parity.compare, parity.locate, parity.result, parity.mutate, parity.report, parity.program\n"
        "print(sorted({'torch', 'jittor', 'guided_diffusion_pt', 'guided_diffusion_jt'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout == "[]\n", done.stderr

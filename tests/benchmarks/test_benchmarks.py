"""The benchmark's own arithmetic, and that its command runs; pytest measures nothing."""

import dataclasses
import json
import os
import subprocess
import sys
import unittest.mock

import numpy as np
import pytest
from support.backends import BACKENDS, ROOT, Backend

from benchmarks import operations, ours, report, run, scaling, targets
from benchmarks.cases import SCALING, Case, make_cases, network, settings
from benchmarks.implementations import PEER
from benchmarks.peer import check_folder
from guided_diffusion_core.errors import UserError

# GFLOP of the original's network, counted from its layers (its README's settings, width 128).
ORIGINAL = {(64, 4): 245.6, (256, 1): 521.4}


@pytest.mark.parametrize("size, batch", ORIGINAL)
def test_operations_are_the_originals(size, batch):
    case = Case("evaluation", "new", size, batch, 128)
    assert operations.evaluation_operations(network(case), batch) / 1e9 == pytest.approx(
        ORIGINAL[size, batch], rel=3e-4
    )


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch counts here")
@pytest.mark.parametrize(
    "changed",
    [{}, {"version": "1"}, {"resblock_updown": True, "use_scale_shift_norm": True}],
    ids=["new", "v1", "flags"],
)
def test_operations_are_what_pytorch_counts(changed):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    case = Case("evaluation", "new", 64, 2, 32)
    flags = {**settings(case), **changed}
    model, _ = Backend("pytorch").module("script_util").create_model_and_diffusion(**flags)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(2, 4, 64, 64), torch.tensor([1, 2]))
    assert (
        operations.evaluation_operations(dataclasses.replace(network(case), **changed), 2) == counter.get_total_flops()
    )


def row(name, wall, scale=1.0):
    return {
        "case": {"name": "training/x", "what": "training", "version": "new", "size": 64, "batch": 4, "width": 32},
        "implementation": name,
        "scale": scale,
        "wall": wall,
        "cpu": [2 * value for value in wall],
        "memory_mib": 1,
        "first": {"wall": 0.5},
    }


def test_ratio_is_the_median_of_the_ratios_round_by_round():
    # the machine is three times slower in the second round
    rows = [row(PEER, [1.0, 3.0, 2.0]), row("jittor", [2.0, 6.3, 3.8], scale=0.5)]
    rates = {"matmul": {"cpu": 4e9}, "convolution": {"cpu": 5e9}, "copy": {"cpu": 9e9}}
    limits = {"training/x": [rates, {**rates, "convolution": {"cpu": 7e9}}, rates]}
    results = {"rows": rows, "limits": limits, "settings": {"device": "cpu"}}
    found = report.summarise(rows[1], results)
    assert found["ratio"] == pytest.approx(1.0) and found["seconds"] == pytest.approx(1.9)
    assert report.summarise(rows[0], results)["ratio"] is None
    counted = operations.training_operations(network(found["case"]), 4)
    assert found["share"] == pytest.approx(counted / 3.8 / 5e9)


def test_on_a_gpu_the_wall_counts_and_each_arithmetic_has_its_limit():
    rows = [row(PEER, [1.0, 1.2, 0.8]), row("pytorch bf16", [0.4, 0.4, 0.2])]
    rates = {
        f"matmul, {name}": {"cpu": 1e9, "wall": rate}
        for name, rate in {"float32": 5e12, "tf32": 2e13, "bf16": 9e13}.items()
    }
    results = {"rows": rows, "limits": {"training/x": [rates] * 3}, "settings": {"device": "cuda:0"}}
    original, found = (report.summarise(each, results) for each in rows)
    counted = operations.training_operations(network(found["case"]), 4)
    assert found["cpu_ratio"] == pytest.approx(1 / 3) and found["rate"] == pytest.approx(counted / 0.4)
    assert found["share"] == pytest.approx(counted / 0.4 / 9e13)
    assert original["share"] == pytest.approx(counted / 1.0 / 2e13)  # its convolutions take TF32
    table = targets.table([original, found], "cuda:0")
    assert "| training/new-64px-batch4-width32 | pytorch bf16 | time (peer) | at most 0.4 | 0.333 | yes |" in table
    assert targets.table([original, found], "cpu") == ""


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--arithmetics", "tf32"], "--arithmetics: found tf32; expected one that the CPU has"),
        (["--device", "auto"], "--device: found auto; expected cpu, cuda or cuda:N"),
        (["--device", "cuda:77", "--backends", "pytorch"], "--device cuda:77: found no such device"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, arguments, message):
    small = ("--what", "evaluation", "--sizes", 32, "--width", 32, "--out_dir", tmp_path / "out")
    refused = command("run", *small, *arguments)
    assert refused.returncode == 2 and message in refused.stderr and "Traceback" not in refused.stderr


def test_16_bits_may_differ_more_from_the_others(tmp_path):
    files = {name: tmp_path / f"{name}.npz" for name in ("pytorch", "pytorch bf16", "jittor bf16")}
    for name, value in zip(files, (1.0, 1.05, 1.5)):
        np.savez(files[name], out=np.full(4, value))
    with pytest.raises(UserError, match="jittor bf16: its out differs by 5.0e-01"):
        run.differences(files)
    del files["jittor bf16"]
    assert run.differences(files)["pytorch bf16"]["out"] == pytest.approx(0.05)


def test_implementations_that_compute_something_else_are_refused(tmp_path):
    arrays = {PEER: np.ones(4), "pytorch": np.ones(4) * (1 + 1e-6), "jittor": np.ones(4) * 1.01}
    files = {name: tmp_path / f"{name}.npz" for name in arrays}
    for name, array in arrays.items():
        np.savez(files[name], out=array)
    with pytest.raises(UserError, match="jittor: its out differs by 1.0e-02"):
        run.differences(files)
    del files["jittor"]
    assert run.differences(files)["pytorch"]["out"] == pytest.approx(1e-6)


def test_a_folder_without_the_original_is_refused(tmp_path):
    with pytest.raises(UserError, match="script_util.py"):
        check_folder(tmp_path)


def test_scaling_varies_one_quantity_at_a_time_and_gives_its_power(tmp_path):
    cases = make_cases(["scaling"], ["new"], [64], 128)
    assert len({case.name for case in cases}) == len(cases) == sum(map(len, SCALING.values())) - len(SCALING) + 1
    rows = [
        {
            "case": case,
            "implementation": "pytorch",
            "memory": 7.0,
            "seconds": 1e-4 * case.size**2 * case.width**1.5 * case.steps / case.processes,
        }
        for case in cases
    ]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in scaling.table(rows).splitlines()
        if line.startswith("| ")
    ][1:]
    exponents = {name: {row[3] for row in lines if row[0] == unit} - {""} for name, unit in scaling.UNITS.items()}
    assert exponents == {
        "size": {"2.00"},
        "width": {"1.50"},
        "steps": {"1.00"},
        "members": {"0.00"},
        "batch": {"0.00"},
        "processes": {"-1.00"},
    }
    scaling.plot(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.parametrize("count", [1, 2])
def test_processes_of_a_group_work_at_the_same_time_and_their_shares_add_up(tmp_path, count):
    case = {"what": "evaluation", "version": "new", "size": 32, "batch": 1, "width": 32}
    job = {"implementation": BACKENDS[0], "peer": "", "case": case, "threads": 1, "device": "cpu"}
    group = run.Group(job, tmp_path, count)
    try:
        answer = group.repeat()
    finally:
        group.stop()
    assert answer["memory_mib"] >= count * 0.9 * group.ready["memory_mib"]
    assert len(list(tmp_path.glob("*/*.npz"))) == count


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_knows_what_depends_on_the_image_alone(backend):
    outputs = {}
    conditions = {}
    for what in ("evaluation", "step"):
        measured = ours.Ours(backend, os.cpu_count())
        measured.prepare(Case(what, "new", 32, 1, 32))
        outputs[what] = measured.check()
        with unittest.mock.patch.object(measured.model, "condition", wraps=measured.model.condition) as condition:
            measured.repeat()
        conditions[what] = condition.call_count
    assert conditions == {"evaluation": 1, "step": 0}
    for name, values in outputs["step"].items():
        np.testing.assert_array_equal(values, outputs["evaluation"][name])


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)], cwd=ROOT, text=True, capture_output=True
    )


def test_a_tiny_run_measures_and_goes_on(tmp_path):
    tiny = (
        "run",
        "--what",
        "evaluation",
        "--sizes",
        32,
        "--width",
        32,
        "--backends",
        BACKENDS[0],
        "--repeats",
        1,
        "--out_dir",
        tmp_path / "out",
    )
    done = command(*tiny)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [len(row["wall"]) for row in results["rows"]] == [1]
    assert results["limits"]["evaluation/new-32px-batch1-width32"][0]["matmul"]["cpu"] > 1e9
    assert "| evaluation/new-32px-batch1-width32 | " + BACKENDS[0] in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "evaluation.png").stat().st_size > 1000
    assert results["settings"]["device"] == "cpu"
    assert command(*tiny, "--resume").returncode == 0
    refused = command(*tiny)
    assert refused.returncode == 2 and "--resume" in refused.stderr

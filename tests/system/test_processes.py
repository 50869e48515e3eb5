"""Test runs of k processes: they equal one process with k times the batch, share the cases, and end together."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.backends import BACKENDS as TESTED
from support.backends import ROOT, Backend
from support.launchers import ENVIRONMENT, launcher
from support.processes_worker import TRAININGS
from support.small import NETWORK, RandomDataset, small_config

from guided_diffusion_core import checkpoints, training
from guided_diffusion_core.backends import BACKENDS
from guided_diffusion_core.data.phantoms import write_isic_phantoms
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.networks.registry import initial_state
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.sampling.folder import require_one_sharing
from guided_diffusion_core.system import processes
from guided_diffusion_core.training.stream import TrainingStream

STOPPED_WITHIN = 60  # seconds; torchrun gives its processes 30, mpirun 1


def run(command):
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


# Largest difference, as a share of the largest value of its kind. Measured: gradients of the first step 9e-14, of the
# second 4e-12, everything else 5e-9. That is a parameter's: its first update divides a gradient by the gradient's own
# size, so that one that consists of rounding errors counts as much as any.
GRADIENTS = (1e-12, 1e-10)
STATES = 1e-7


def kind(name):
    """Return the kind of a value by its name, which sets its tolerance: "gradient/0", "model", ..."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] in ("gradient", "trainer") else parts[0]


@pytest.mark.long(seconds=30)
def test_two_processes_equal_one_with_twice_the_batch(backend, tmp_path):
    """Compare losses, gradients, parameters, averages, moments and running statistics in float64.

    Both processes have the same bits.
    """
    both = tmp_path / "both"
    one = tmp_path / "one"
    both.mkdir(), one.mkdir()
    run([*launcher(backend), "tests/support/processes_worker.py", backend.name, both])
    run([sys.executable, "tests/support/processes_worker.py", backend.name, one])
    for name in TRAININGS[backend.name]:
        assert len({(both / f"{name}-{rank}.sha256").read_text() for rank in (0, 1)}) == 1
        found, expected = (dict(np.load(folder / f"{name}.npz")) for folder in (both, one))
        assert list(found) == list(expected)
        scales = {}
        for key, value in expected.items():
            scales[kind(key)] = max(scales.get(kind(key), 0.0), float(np.abs(value).max()))
        for key, value in expected.items():
            bound = GRADIENTS[int(key.split("/")[1])] if key.startswith("gradient") else STATES
            assert np.abs(found[key] - value).max() <= bound * scales[kind(key)], (name, key)


# The loss of process r is the sum of (r + 2) y, where y is the sum of the processes' x^2, and x is r + (1, 2, 3).
SUMS = """
import sys
from pathlib import Path
import numpy as np
from guided_diffusion_core.backends import backend_module, start_backend

backend, generic, folder = sys.argv[1:]
runtime = start_backend(backend, precision="float64")
if generic:
    runtime.use_generic(True)
dist_util = backend_module(backend, "dist_util")
group = dist_util.setup_dist()
x = runtime.tracked_copy(runtime.to_tensor(group.rank + np.array([1.0, 2.0, 3.0])))
total = dist_util.all_reduce(x * x)
[gradient] = backend_module(backend, "optim").gradients((total * (group.rank + 2.0)).sum(), [x])
[mean] = dist_util.average([gradient])
found = [runtime.to_numpy(value) for value in (total, gradient, mean)]
np.savez(Path(folder) / f"{group.rank}.npz", *found)
group.close()
"""


# Jittor has an operator for the CPU, and one that it has on a GPU too.
WAYS = [(name, generic) for name in TESTED for generic in ("", "generic") if name == "jittor" or not generic]


@pytest.mark.parametrize("name, generic", WAYS)
def test_sums_and_gradients_are_those_of_all_processes(tmp_path, name, generic):
    (tmp_path / "sums.py").write_text(SUMS)
    run([*launcher(Backend(name)), tmp_path / "sums.py", name, generic, tmp_path])
    values = np.arange(2)[:, None] + np.array([1.0, 2.0, 3.0])  # (processes, 3)
    gradients = 2 * values * (2 + 3)
    for rank in range(2):
        total, gradient, mean = dict(np.load(tmp_path / f"{rank}.npz")).values()
        np.testing.assert_allclose(total, (values**2).sum(0), rtol=1e-15)
        np.testing.assert_allclose(gradient, gradients[rank], rtol=1e-15)
        np.testing.assert_allclose(mean, gradients.mean(0), rtol=1e-15)


@pytest.mark.parametrize("count, microbatch, size", [(3, 2, 2), (4, 4, 3), (5, 2, 3)])
def test_slots_of_the_processes_make_the_microbatches_of_one(count, microbatch, size):
    shares = [processes.own_slots(count, microbatch, rank, size) for rank in range(size)]
    for start in range(0, count, microbatch):
        together = sorted(slot for share in shares for slot in share[start : start + microbatch])
        assert together == list(range(start * size, min(start + microbatch, count) * size))
    assert processes.own_slots(count, microbatch, 0, 1) == list(range(count))


def test_streams_of_the_processes_are_one():
    """Compare the examples also from a later step, when another number of processes continues with the same batches."""
    whole = TrainingStream(RandomDataset(), NoiseTape(1), 12, 4)
    dataset = RandomDataset()
    for size, count, start in ((2, 6, 0), (3, 4, 2)):
        for rank in range(size):
            slots = processes.own_slots(count, 2, rank, size)
            part = TrainingStream(dataset, NoiseTape(1), 12, 4, start, slots=slots)
            assert len(part) == count * (4 - start)
            for step in range(4 - start):
                for index, slot in enumerate(slots):
                    found = part[step * count + index]
                    expected = whole[(start + step) * 12 + slot]
                    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, processes.Processes()),
        (
            {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            processes.Processes(1, 4, 0, 4, "torchrun"),
        ),
        (
            {
                "RANK": "3",
                "WORLD_SIZE": "4",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "a",
                "MASTER_PORT": "1",
            },
            processes.Processes(3, 4, 1, 2, "torchrun"),
        ),
        ({"RANK": "1", "WORLD_SIZE": "4"}, processes.Processes()),
        (
            {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            processes.Processes(2, 3, 1, 3, "mpirun"),
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            processes.Processes(),
        ),
    ],
)
def test_what_the_launchers_say(monkeypatch, variables, expected):
    for names, others, local in processes._VARIABLES.values():
        for name in (*names, *others, local):
            monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.launched() == expected
    for backend in BACKENDS.values():
        if expected.size == 1 or expected.launcher == backend.launcher:
            assert processes.launched_for(backend.name) == expected
        else:
            with pytest.raises(
                UserError,
                match=f"--backend {backend.name}: found {expected.size} processes of "
                f"{expected.launcher}; expected {backend.launcher}",
            ):
                processes.launched_for(backend.name)


def test_another_number_of_processes_goes_on_with_the_same_batches(tmp_path):
    config = small_config(batch_size=6, microbatch=4, processes=2)
    folder = checkpoints.save(tmp_path, 4, config, {"model": {"a": np.zeros(2, np.float32)}})
    for size, shares in ((1, (12, 8)), (2, (6, 4)), (4, (3, 2))):
        resumed = training.resumed_config(str(folder), "", {}, size)[1]
        assert (resumed.training.batch_size, resumed.training.microbatch) == shares and resumed.processes == size
    with pytest.raises(
        UserError, match="found 3 processes; expected a number that divides the --microbatch of the whole training, 8"
    ):
        training.resumed_config(str(folder), "", {}, 3)
    with pytest.raises(UserError, match="--batch_size: found 6; expected 12"):
        training.resumed_config(str(folder), "", {"batch_size": 6}, 1)


@pytest.fixture(scope="module")
def isic(tmp_path_factory):
    """Make folders (train, test) with four and three phantoms."""
    return write_isic_phantoms(tmp_path_factory.mktemp("isic"), 4, 3, 40, seed=1)


def train(isic, out_dir, backend, *flags):
    network = [text for name, value in NETWORK.items() if name != "in_ch" for text in (f"--{name}", str(value))]
    return [
        "scripts/segmentation_train.py",
        "--backend",
        backend.name,
        "--data_name",
        "ISIC",
        "--data_dir",
        isic[0],
        "--out_dir",
        out_dir,
        *network,
        "--batch_size",
        "2",
        "--save_interval",
        "1",
        *flags,
    ]


def test_a_killed_process_ends_the_run_which_goes_on(backend, isic, tmp_path):
    """Kill one process with kill -9: the others end soon, with a message and an exit code.

    --resume last continues, also without a launcher.
    """
    out_dir = tmp_path / "run"
    with open(tmp_path / "errors", "w+") as errors:
        started = subprocess.Popen(
            [
                *map(
                    str,
                    [
                        *launcher(backend),
                        *train(isic, out_dir, backend, "--max_steps", "100000", "--keep_checkpoints", "2"),
                    ],
                )
            ],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        while not (out_dir / "checkpoints" / "last").exists() and started.poll() is None:
            time.sleep(0.05)
        os.kill(process_of_rank(started.pid, 1), signal.SIGKILL)
        code = started.wait(timeout=STOPPED_WITHIN)
        errors.seek(0)
        said = errors.read()
    assert code != 0
    assert "process 0 of 2" in said and "--resume last" in said, said
    whole = checkpoints.find_whole("last", out_dir)
    step = int(whole.name.removeprefix("step_"))
    done = run([sys.executable, *resumed(isic, out_dir, backend, step + 1)])
    assert f"from step {step} on" in done.stderr and "--batch_size 4" in done.stderr
    assert [json.loads(line)["step"] for line in (out_dir / "progress.jsonl").read_text().splitlines()][-1] == step + 1


def resumed(isic, out_dir, backend, steps):
    return [
        "scripts/segmentation_train.py",
        "--backend",
        backend.name,
        "--data_dir",
        isic[0],
        "--out_dir",
        out_dir,
        "--resume",
        "last",
        "--max_steps",
        steps,
    ]


def process_of_rank(launcher_pid, rank):
    """Find the process number of a launched process by its environment."""
    variables = {f"RANK={rank}", f"OMPI_COMM_WORLD_RANK={rank}"}
    for child in subprocess.run(
        ["ps", "--ppid", str(launcher_pid), "-o", "pid="], text=True, capture_output=True
    ).stdout.split():
        with open(f"/proc/{child}/environ") as file:
            if variables & set(file.read().split("\0")):
                return int(child)
    raise AssertionError(f"no process of rank {rank}")


def test_sampling_is_shared(backend, isic, tmp_path):
    """Require the masks of one process to the bit, and one report, from two processes."""
    config = small_config(preset="fast", normalisation="RGB / 255", data_name="ISIC")
    checkpoints.save(tmp_path / "run", 1, config, {"model": initial_state(config.model, config.seed)})
    flags = [
        "scripts/segmentation_sample.py",
        "--backend",
        backend.name,
        "--data_dir",
        isic[1],
        "--model_path",
        tmp_path / "run",
        "--num_ensemble",
        "2",
        "--sample_steps",
        "2",
        "--batch_size",
        "2",
        "--out_dir",
    ]
    run([*launcher(backend), *flags, tmp_path / "both"])
    run([sys.executable, *flags, tmp_path / "one"])
    found, expected = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.name != "run_report.json"}
        for name in ("both", "one")
    )
    assert len(expected) == 15 and found == expected
    reports = [json.loads((tmp_path / name / "run_report.json").read_text()) for name in ("both", "one")]
    differing = {name for name in reports[1] if reports[0][name] != reports[1][name]}
    assert differing == {"processes", "out_dir", "sampler_seconds", "memory_mib"}
    assert reports[0]["finished"] and reports[0]["processes"] == 2 and reports[0]["cases"] == 3


def test_parts_beside_a_launcher_are_refused():
    require_one_sharing(processes.Processes(), 1, 3)
    with pytest.raises(UserError, match="--num_parts: found 3 and --part_id 0 with 2 processes of mpirun"):
        require_one_sharing(processes.Processes(0, 2, 0, 2, "mpirun"), 0, 3)

"""Which device a value of `--device` means: on machines with other GPUs, and for the processes of a launcher."""

import subprocess

import numpy as np
import pytest
from support.backends import ROOT
from support.launchers import ENVIRONMENT, launcher

from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system import devices
from guided_diffusion_core.system.devices import Device, Found
from guided_diffusion_core.system.processes import _VARIABLES

NONE = Found(missing="no driver")
ONE = Found(("A100",))
TWO = Found(("A100", "T4"))
APPLE = Found(has_mps=True)
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MPIRUN = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Take the variables of every launcher out of the environment."""
    for names, others, local in _VARIABLES.values():
        for name in (*names, *others, local):
            monkeypatch.delenv(name, raising=False)


def launch(monkeypatch, *place, names=TORCHRUN):
    """Set the environment as a launcher does. place: rank, size, rank and size on the machine."""
    for name, value in zip(names, place):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "a")
    monkeypatch.setenv("MASTER_PORT", "1")


def choose(wanted, found=NONE, broken=()):
    """Choose on a machine with these devices, of which some do not work."""
    return devices.choose(wanted, lambda: found, lambda name: "no kernel image" if name in broken else "")


@pytest.mark.parametrize(
    "name, expected",
    [("auto", ("auto", None)), ("cpu", ("cpu", None)), ("cuda", ("cuda", None)), ("mps", ("mps", None))]
    + [(f"cuda:{number}", ("cuda", number)) for number in (0, 1, 11)],
)
def test_names(name, expected):
    assert devices.parse(name) == expected


@pytest.mark.parametrize(
    "name", ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:1.0", "cuda:²", "cpu:0", "meta"]
)
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="--device: found .* expected auto, cpu, cuda, cuda:N or mps"):
        choose(name, TWO)


@pytest.mark.parametrize(
    "wanted, found, name",
    [
        ("auto", NONE, "cpu"),
        ("auto", ONE, "cuda:0"),
        ("auto", TWO, "cuda:0"),
        ("auto", APPLE, "mps"),
        ("cuda", TWO, "cuda:0"),
        ("cuda:1", TWO, "cuda:1"),
        ("mps", APPLE, "mps"),
    ],
)
def test_choice_of_one_process(wanted, found, name):
    assert choose(wanted, found).name == name


def test_the_cpu_is_taken_without_a_look_at_the_gpus():
    assert devices.choose("cpu", None, None) == Device("cpu")


def test_auto_says_why_it_takes_the_cpu():
    assert str(choose("auto", NONE)) == "cpu (no driver)"
    assert str(choose("auto", TWO)) == "cuda:0 (A100)"
    assert str(choose("auto", TWO, broken=["cuda:0"])) == "cuda:1 (T4)"
    both = "cuda:0 (A100) does not work: no kernel image; cuda:1 (T4) does not work: no kernel image"
    assert str(choose("auto", TWO, broken=["cuda:0", "cuda:1"])) == f"cpu ({both})"
    assert choose("auto", APPLE, broken=["mps"]).name == "cpu"


@pytest.mark.parametrize(
    "wanted, found, here",
    [
        ("cuda", NONE, "cpu"),
        ("cuda:0", NONE, "cpu"),
        ("mps", NONE, "cpu"),
        ("cuda:1", ONE, r"cpu, cuda:0 \(A100\)"),
        ("cuda:2", TWO, r"cpu, cuda:0 \(A100\), cuda:1 \(T4\)"),
        ("mps", TWO, r"cpu, cuda:0 \(A100\), cuda:1 \(T4\)"),
        ("cuda", APPLE, r"cpu, mps \(Apple GPU\)"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(wanted, found, here):
    reason = r" \(no driver\)" if found is NONE else ""
    with pytest.raises(
        UserError, match=f"--device {wanted}: found no such device{reason}; .* finds here: {here}. Give"
    ):
        choose(wanted, found)


@pytest.mark.parametrize("wanted, found", [("cuda", ONE), ("cuda:1", TWO), ("mps", APPLE)])
def test_a_device_that_does_not_work_is_refused(wanted, found):
    every = [device.name for device in found.devices()]
    with pytest.raises(UserError, match=f"--device {wanted}: found .* which does not work: no kernel image; expected"):
        choose(wanted, found, broken=every)


# ---- Several processes ----


@pytest.mark.parametrize("names", [TORCHRUN, MPIRUN], ids=["torchrun", "mpirun"])
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_each_process_takes_its_own_gpu(monkeypatch, wanted, names):
    chosen = []
    for rank in range(4):  # two machines with two GPUs each
        launch(monkeypatch, rank, 4, rank % 2, 2, names=names)
        chosen.append(choose(wanted, TWO).name)
    assert chosen == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


@pytest.mark.parametrize("names", [TORCHRUN, MPIRUN], ids=["torchrun", "mpirun"])
@pytest.mark.parametrize(
    "wanted, found, size", [("auto", ONE, 2), ("cuda", TWO, 3), ("cuda", ONE, 4), ("auto", APPLE, 2)]
)
def test_more_processes_than_gpus_are_refused_in_each_of_them(monkeypatch, wanted, found, size, names):
    for rank in range(size):
        launch(monkeypatch, rank, size, rank, size, names=names)
        with pytest.raises(
            UserError, match=f"^{size} processes of .* on this machine: found .*at most one process for"
        ):
            choose(wanted, found)
        assert choose("cpu", found).name == "cpu"


@pytest.mark.parametrize("wanted", ["cuda:0", "cuda:1"])
def test_a_number_is_refused_for_several_processes(monkeypatch, wanted):
    launch(monkeypatch, 0, 2, 0, 2)
    with pytest.raises(
        UserError, match=f"--device {wanted}: found one GPU for 2 processes of torchrun; .* Give --device cuda:"
    ):
        choose(wanted, TWO)


def test_processes_without_a_gpu_take_the_cpu(monkeypatch):
    launch(monkeypatch, 1, 2, 1, 2)
    assert choose("auto", NONE) == Device("cpu", "no driver")
    with pytest.raises(UserError, match="--device cuda: found no such device"):
        choose("cuda", NONE)


def test_a_process_does_not_take_the_gpu_of_another_one(monkeypatch):
    launch(monkeypatch, 1, 2, 1, 2)
    assert choose("auto", TWO, broken=["cuda:1"]).name == "cpu"
    with pytest.raises(UserError, match=r"found cuda:1 \(T4\), which does not work"):
        choose("cuda", TWO, broken=["cuda:1"])


# A process on a machine with two GPUs that are not real, one of which may be broken. It writes which one it takes.
ON_A_FAKE_MACHINE = """
import importlib, sys
from pathlib import Path
from guided_diffusion_core.backends import BACKENDS
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system.devices import Device, Found
from guided_diffusion_core.system.processes import launched

backend, folder, kinds = sys.argv[1:]
package = BACKENDS[backend].package
runtime = importlib.import_module(package + ".runtime")
runtime.find_devices = lambda: Found(("A100", "T4"))
runtime.try_device = lambda name: ""
runtime.set_device = lambda device: setattr(runtime.current, "device", device)
rank = launched().rank
runtime.start(device="auto")
lines = [runtime.device()]
if kinds:
    runtime.current.device = Device(kinds.split(",")[rank])
    try:
        importlib.import_module(package + ".dist_util").setup_dist()
    except UserError as error:
        lines.append(str(error))
Path(folder, str(rank)).write_text("\\n".join(lines))
"""


@pytest.mark.long(seconds=20)
@pytest.mark.parametrize("kinds", ["", "cpu,mps"])
def test_processes_of_the_real_launchers(backend, tmp_path, kinds):
    """Each takes its own GPU; if their devices are of several kinds, all refuse with the same words."""
    script = tmp_path / "process.py"
    script.write_text(ON_A_FAKE_MACHINE)
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [*launcher(backend), str(script), backend.name, str(tmp_path), kinds]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=600)
    written = [(tmp_path / str(rank)).read_text().splitlines() for rank in range(2)]
    assert [lines[0] for lines in written] == ["cuda:0", "cuda:1"], done.stderr
    found = {tuple(lines[1:]) for lines in written}
    assert len(found) == 1
    if kinds:
        [[message]] = found
        assert message.startswith("--device: found process 0 on cpu, process 1 on mps; expected one kind of device")


class Group:
    """A group whose processes have these values. It has the method `gather` of `dist_util.Group`."""

    def __init__(self, kinds):
        self.kinds = kinds

    def gather(self, values):
        return np.array([[devices.KINDS.index(kind)] for kind in self.kinds])


def test_all_processes_compute_on_one_kind_of_device():
    for kind in devices.KINDS:
        devices.require_one_kind(Group([kind] * 3), Device(kind))
    for kinds in (["cuda", "cpu"], ["cpu", "cpu", "mps"], ["cuda", "mps"]):
        listed = ", ".join(f"process {rank} on {kind}" for rank, kind in enumerate(kinds))
        for kind in kinds:
            with pytest.raises(UserError, match=f"--device: found {listed}; expected one kind"):
                devices.require_one_kind(Group(kinds), Device(kind))

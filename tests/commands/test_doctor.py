"""Test `medsegdiff doctor`: its report, what it finds missing, and that it shows no name of a person or folder."""

import getpass
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from support.backends import BACKENDS, ROOT

from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system import environment
from medsegdiff import __version__
from medsegdiff.commands import doctor
from medsegdiff.commands.doctor import without_names

# The report of an installation without frameworks and with a broken one.
BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
from importlib import util
find_spec = util.find_spec
util.find_spec = lambda name: None if name in {blocked!r} else find_spec(name)
from medsegdiff.__main__ import main
sys.argv = ["medsegdiff", "doctor", *{flags!r}]
main()
"""


def report(*flags, blocked=()):
    code = BLOCKED.format(blocked=set(blocked), flags=list(flags))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_it_shows_versions_tools_and_caches_and_nobodys_name():
    code, text = report()
    assert code == 0
    rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    assert rows["medsegdiff"].strip() == __version__
    assert rows["numpy"].strip() == metadata.version("numpy")
    for name in ("processor", "memory", "compiler", "Python's headers", "torchrun", "mpirun", "Jittor's cache"):
        assert rows[name].strip()
    assert text.splitlines()[-1].startswith(("missing", "  "))
    assert str(Path.home()) not in text and f"/{getpass.getuser()}/" not in text


def test_without_a_framework_it_says_how_to_install_one():
    code, text = report(blocked=("torch", "jittor"))
    assert code == 0
    assert (
        "a backend: in the checkout, pip install .[pytorch] or pip install .[jittor]" in text.partition("missing:")[2]
    )


def test_backend_that_does_not_run_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "FORWARD", "raise RuntimeError('no such lens')")
    args = type("Args", (), {"backend": "jittor", "device": "cpu"})
    assert doctor.run(args) == 1
    assert "jittor runs:            no: RuntimeError: no such lens" in capsys.readouterr().out


def test_backend_that_runs_is_exit_code_0(backend):
    code, text = report("--backend", backend.name)
    assert code == 0, text
    assert f"{backend.name + ' runs:':<24}yes, on c" in text  # cpu or cuda


def test_it_lists_the_devices_of_each_backend():
    rows = dict(line.split(":", 1) for line in report()[1].splitlines() if ":" in line)
    for name in BACKENDS:
        assert rows[f"{name}'s devices"].strip().startswith("cpu")


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
def test_a_device_that_is_not_there_is_named():
    code, text = report("--backend", "pytorch", "--device", "cuda:99")
    assert code == 1
    assert "no: guided_diffusion_core.errors.UserError: --device cuda:99: found no such device" in text


def test_what_the_machine_lacks_is_named(monkeypatch, capsys):
    def lacks():
        raise UserError("g++: found no such program")

    monkeypatch.setattr(environment, "check_compiler", lacks)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: name)
    doctor.run(type("Args", (), {"backend": None}))
    assert "g++: found no such program" in capsys.readouterr().out.partition("missing:")[2]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("/data/ada/venv/bin/python", "/data/USER/venv/bin/python"),
        ("/home/ada/x and /scratch/ada", "~/x and /scratch/USER"),
        ("/data/adage/x", "/data/adage/x"),
    ],
)
def test_names_are_left_out(monkeypatch, text, shown):
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    assert without_names(text) == shown

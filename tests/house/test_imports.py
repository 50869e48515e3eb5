"""Check in fresh processes which modules an import loads. `test_architecture.py` reads the imports in the sources."""

import subprocess
import sys

import pytest
from support.backends import BACKENDS, ROOT

from medsegdiff.commands import COMMANDS

FRAMEWORKS = {"torch", "jittor", "jittor_utils"}
PACKAGES = {"guided_diffusion_pt", "guided_diffusion_jt"}

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("[!_]*.py"))

IMPORT_ALL = """
import importlib, pathlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
for path in sorted(pathlib.Path({package!r}).rglob("*.py")):
    importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
print("imported", sorted({watched!r} & sys.modules.keys()))
"""

HELP = """
import runpy, sys
sys.path.insert(0, "scripts")
sys.argv = [{path!r}, "--help"]
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as leave:
    print("left", leave.code, sorted({watched!r} & sys.modules.keys()))
"""

MEDSEGDIFF = """
import sys
from medsegdiff.__main__ import main
sys.argv = {argv!r}
try:
    main()
except SystemExit as leave:
    print("left", leave.code, sorted({watched!r} & sys.modules.keys()))
"""


def run_python(code):
    """The last line that the code prints in a fresh Python at the root of the repository."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_core_loads_no_framework():
    code = IMPORT_ALL.format(package="guided_diffusion_core", blocked=set(), watched=FRAMEWORKS | PACKAGES)
    assert run_python(code) == "imported []"


@pytest.mark.skipif("pytorch" not in BACKENDS, reason="PyTorch is not among MEDSEGDIFF_BACKENDS")
def test_pytorch_backend_works_without_jittor():
    other = {"jittor", "jittor_utils", "guided_diffusion_jt"}
    code = IMPORT_ALL.format(package="guided_diffusion_pt", blocked=other, watched={"torch", *other})
    assert run_python(code) == "imported ['torch']"


@pytest.mark.skipif("jittor" not in BACKENDS, reason="Jittor is not among MEDSEGDIFF_BACKENDS")
def test_jittor_backend_works_without_torch():
    other = {"torch", "guided_diffusion_pt"}
    code = IMPORT_ALL.format(package="guided_diffusion_jt", blocked=other, watched={"jittor", *other})
    assert run_python(code) == "imported ['jittor']"


@pytest.mark.parametrize("command", SCRIPTS)
def test_help_loads_no_framework(command):
    code = HELP.format(path=f"scripts/{command}", watched=FRAMEWORKS | PACKAGES)
    assert run_python(code) == "left 0 []"


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help_of_medsegdiff_loads_no_framework(command):
    code = MEDSEGDIFF.format(argv=["medsegdiff", command, "--help"], watched=FRAMEWORKS | PACKAGES)
    assert run_python(code) == "left 0 []"


def test_importing_medsegdiff_loads_no_framework():
    assert run_python(f"import sys, medsegdiff; print({FRAMEWORKS | PACKAGES} & sys.modules.keys())") == "set()"


def test_commands_of_the_original_are_there():
    assert {"segmentation_train.py", "segmentation_sample.py", "segmentation_env.py"} <= set(SCRIPTS)

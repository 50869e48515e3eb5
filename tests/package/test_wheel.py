"""The package as a user of pip gets it: what the wheel holds, and each extra in a fresh environment."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from support.backends import BACKENDS, ROOT

import medsegdiff
from guided_diffusion_core.backends import BACKENDS as TABLE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
SMALL = (
    *("--preset", "fast", "--image_size", 32, "--num_channels", 32, "--num_heads", 1, "--num_res_blocks", 1),
    *("--channel_mult", "1,2", "--attention_resolutions", 16, "--batch_size", 2, "--max_steps", 2),
)
PHANTOMS = (
    "from guided_diffusion_core.data.phantoms import write_image_phantoms; write_image_phantoms('data', 2, 32, 1)"
)
# What the installed package finds: versions, frameworks, and the masks of the interface against those of the command.
API = """
import importlib.util, pathlib, numpy, medsegdiff
from PIL import Image
result = medsegdiff.load("run").segment("data/images/case000.png", num_ensemble=2, sample_steps=2)
written = numpy.asarray(Image.open("masks/case000_mask.png")) > 0
assert numpy.array_equal(result.mask, written)
found = [name for name in ("torch", "jittor") if importlib.util.find_spec(name)]
print(numpy.__version__.split(".")[0], *found, pathlib.Path(medsegdiff.__file__).parent.parent)
"""
# Jittor's compiled core belongs to the path that Jittor is imported from: the environment takes Jittor from where the
# tests have it, so that nothing is compiled again.
SHARED_JITTOR = """
import importlib.machinery, sys

class Shared:
    def find_spec(self, name, path=None, target=None):
        if name in ("jittor", "jittor_utils"):
            return importlib.machinery.PathFinder.find_spec(name, [{folder!r}])

sys.meta_path.insert(0, Shared())
"""


def run(*command, cwd):
    """Return what a command prints; it must end with exit code 0."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=kept, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Path of the wheel, built from a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in tracked:
        if name.split("/")[0] in (*PACKAGES, "README.md", "LICENSE", "pyproject.toml", ".gitignore"):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, folder / "source", cwd=folder)
    [path] = folder.glob("*.whl")
    return path


def test_version_is_the_same_everywhere():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == medsegdiff.__version__
    assert f"## {medsegdiff.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_every_backend_has_an_extra_and_pins_are_within_the_ranges():
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(TABLE) <= set(extras)
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    pinned = {name.lower(): version for name, version in pinned.items()}
    wanted = [*PROJECT["project"]["dependencies"], *(text for texts in extras.values() for text in texts)]
    for text in wanted:
        name, low = re.match(r"([\w-]+)(?:\[.*\])?(?:[>=]=([\d.]+))?", text).groups()
        if low:
            version = pinned[name.lower()]
            assert as_numbers(version) >= as_numbers(low), f"{name} {version} is below {low}"


def as_numbers(version):
    return [int(part) for part in re.findall(r"\d+", version)]


@pytest.mark.install
def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        rest = {name.rpartition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
        [entry] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "medsegdiff = medsegdiff.__main__:main" in archive.read(entry).decode()
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES, cwd=ROOT).splitlines()
    assert names == {name for name in tracked if (ROOT / name).is_file()}
    assert {name.split("/")[0] for name in names} == set(PACKAGES)
    assert any(name.endswith(".j2") for name in names)
    assert "licenses/LICENSE" in rest


@pytest.mark.install
@pytest.mark.long(seconds=60)
@pytest.mark.parametrize("name", BACKENDS)
def test_each_extra_is_a_working_installation_without_the_other(wheel, name, tmp_path):
    python = install(wheel, name, tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    command = python.parent / "medsegdiff"
    flags = ("--backend", name)
    assert "commands" in run(command, "--help", cwd=work)
    assert f"{name + ' runs:':<24}yes" in run(command, "doctor", *flags, cwd=work)
    run(python, "-c", PHANTOMS, cwd=work)
    data = ("--data_name", "IMAGES", "--data_dir", "data")
    run(command, "train", *flags, *data, "--out_dir", "run", *SMALL, cwd=work)
    sampling = ("--num_ensemble", 2, "--sample_steps", 2)
    run(command, "sample", *flags, *data, "--model_path", "run", "--out_dir", "masks", *sampling, cwd=work)
    run(command, "score", "--inp_pth", "masks", *data, cwd=work)
    assert (work / "masks" / "report.html").is_file(), "the templates are there"
    numpy, *found, place = run(python, "-c", API, cwd=work).splitlines()[-1].split()
    assert found == [TABLE[name].framework], "the other framework is not there"
    assert numpy == ("1" if name == "jittor" else "2")
    assert place.startswith(str(tmp_path)), "the installed package, not the checkout"


def install(wheel, name, folder):
    """Install the wheel with an extra into a fresh environment; return its Python."""
    run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    # the tested versions; numpy is left to the extra, which takes numpy 2 but for Jittor
    pins = (ROOT / "requirements.txt").read_text().splitlines()
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pin for pin in pins if "==" in pin and not pin.startswith("numpy")))
    run(python, "-m", "pip", "install", "--quiet", "-c", constraints, f"{wheel}[{name}]", cwd=folder)
    if name != "jittor":
        return python
    # oneDNN as well: the first one that is linked into Jittor's cache stays
    run(python, "-m", "pip", "uninstall", "-y", "jittor", "onednn-cpu-gomp", "onednn-devel-cpu-gomp", cwd=folder)
    shared = os.path.dirname(os.path.dirname(importlib.util.find_spec("jittor").origin))
    [packages] = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "shared_jittor.py").write_text(SHARED_JITTOR.format(folder=shared))
    (packages / "shared_jittor.pth").write_text("import shared_jittor\n")
    return python

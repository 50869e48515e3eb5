"""Test how Jittor is started on a GPU: a made-up Jittor, and made-up installations of CUDA."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support.backends import BACKENDS, ROOT

from guided_diffusion_core.errors import UserError

if "jittor" not in BACKENDS:
    pytest.skip("Jittor is not among MEDSEGDIFF_BACKENDS", allow_module_level=True)

from support.made_up_cuda import (
    bare_machine,
    install,
    touch,
)

from guided_diffusion_core.system.devices import Device
from guided_diffusion_jt import runtime
from guided_diffusion_jt.kernels import cuda

FAKE_JITTOR = """
import os
print({name: os.environ.get(name) for name in ("nvcc_path", "use_cutt", "use_cutlass", "cache_name", "device_id",
                                               "NVIDIA_TF32_OVERRIDE")})
from jittor_utils import misc
from jittor_utils.install_cuda import has_installation
try:
    misc.download_url_to_local("http://cub.tgz", "cub.tgz", "/", "")
except Exception as error:
    print(has_installation(), error)
__version__ = "made up"
has_cuda = bool(os.environ["nvcc_path"])
class flags:
    cc_flags = ""
    nvcc_flags = " -std=c++14 --use_fast_math -w "
    use_cuda = 0
"""
START = """
from guided_diffusion_core.system.devices import Device
from guided_diffusion_jt import runtime
runtime.set_device(Device({device!r}))
print(runtime.jt.flags.use_cuda, runtime.jt.flags.nvcc_flags.split(), runtime.is_generic())
"""


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    return bare_machine(tmp_path, monkeypatch)


def start(machine, device, **variables):
    """Start a made-up Jittor on a device in a new process; return its output and errors in lines."""
    touch(machine, "fake/jittor/__init__.py")
    (machine / "fake" / "jittor" / "__init__.py").write_text(FAKE_JITTOR)
    own = {"PYTHONPATH": os.pathsep.join([str(machine / "fake"), str(ROOT)]), "HOME": str(machine / "home")}
    environ = {**os.environ, **own, **variables}
    done = subprocess.run(
        [sys.executable, "-c", START.format(device=device)], env=environ, cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("device, number", [("cuda:0", None), ("cuda:1", "1"), ("cuda:3", "3")])
def test_jittor_is_imported_for_a_gpu(machine, monkeypatch, device, number):
    nvcc = install(machine / "toolkit")
    (settings, download, state), _ = start(
        machine,
        device,
        CUDA_HOME=str(machine / "toolkit"),
        PATH=os.defpath,
        cache_name="medsegdiff",
        device_id="7",
    )
    assert eval(settings) == {
        "nvcc_path": str(nvcc),
        "use_cutt": "0",
        "use_cutlass": "0",
        "cache_name": "medsegdiff_cuda",
        "device_id": number,
        "NVIDIA_TF32_OVERRIDE": "0",
    }
    assert download.startswith("False Jittor: found no copy of http://cub.tgz")
    assert state == "1 ['-std=c++14', '-w'] True"


def test_a_cpu_takes_nothing_of_cuda(machine, monkeypatch):
    """Start it in the environment that a process on a GPU leaves to its children."""
    nvcc = install(machine / "toolkit")
    (settings, download, state), _ = start(
        machine, "cpu", PATH=os.defpath, nvcc_path=str(nvcc), cache_name="medsegdiff_cuda"
    )
    found = eval(settings)
    assert found["nvcc_path"] == "" and found["cache_name"] == "medsegdiff"
    assert download.startswith("False ") and state.startswith("0 ['-std=c++14', '--use_fast_math'") and "False" in state


def test_a_missing_part_is_one_error_before_the_import(machine):
    install(machine / "toolkit", without=["cuDNN 8"])
    said, errors = start(machine, "cuda:0", CUDA_HOME=str(machine / "toolkit"), PATH=os.defpath)
    assert not said and "UserError: --device cuda with --backend jittor: found" in errors and "libcudnn.so" in errors


@pytest.mark.parametrize("has_cuda, taken", [(False, None), (True, "1"), (True, None)])
def test_an_imported_jittor_keeps_its_device(monkeypatch, has_cuda, taken):
    """Jittor decides when it is imported."""
    monkeypatch.setenv("device_id", taken or "")
    if taken is None:
        monkeypatch.delenv("device_id")
    jittor = SimpleNamespace(has_cuda=has_cuda)
    if has_cuda:
        cuda.require(jittor, f"cuda:{taken or 0}")
    expected = "taken cuda:" if has_cuda else "found a Jittor that was imported without CUDA"
    with pytest.raises(UserError, match=expected):
        cuda.require(jittor, "cuda:2")


COMPUTING_JITTOR = """
class Tensor:
    def __getitem__(self, places):
        return self

    def sum(self):
        return self

    def item(self):
        return RESULT

class nn:
    conv2d = staticmethod(lambda x, kernel: x)

def ones(shape):
    return Tensor()
"""


@pytest.mark.parametrize(
    "body, error",
    [
        (COMPUTING_JITTOR.replace("RESULT", "324"), ""),
        (COMPUTING_JITTOR.replace("RESULT", "323"), "a convolution of ones gave 323"),
        ("raise RuntimeError('nvcc fails')", "nvcc fails"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit code -9"),
        ("raise SystemExit(0)", "Jittor could not bring its compiled core up to date"),
    ],
    ids=["works", "wrong", "import fails", "killed", "exits"],
)
def test_a_gpu_is_tried_in_a_process_of_its_own(machine, monkeypatch, body, error):
    install(machine / "toolkit")
    touch(machine, "fake/jittor/__init__.py")
    (machine / "fake" / "jittor" / "__init__.py").write_text(FAKE_JITTOR + body)
    monkeypatch.setattr(sys, "path", [str(machine / "fake"), *sys.path])
    for name, value in (("PATH", os.defpath), ("CUDA_HOME", machine / "toolkit"), ("HOME", machine / "home")):
        monkeypatch.setenv(name, str(value))
    found = runtime.try_device("cuda:0")
    assert error in found and bool(found) == bool(error)


@pytest.mark.parametrize("name", ["cuda:0", "cuda:2"])
def test_float64_is_refused_on_a_gpu(monkeypatch, name):
    monkeypatch.setattr(runtime.current, "device", Device(name))
    with pytest.raises(UserError, match=f"--device {name} with --backend jittor: found a computation in float64"):
        runtime.set_precision("float64")
    assert runtime.is_generic()

"""Test the search for what Jittor needs on a GPU, among made-up installations of CUDA."""

import os
import subprocess
from pathlib import Path

import pytest
from support.backends import BACKENDS

from guided_diffusion_core.errors import UserError

if "jittor" not in BACKENDS:
    pytest.skip("Jittor is not among MEDSEGDIFF_BACKENDS", allow_module_level=True)

from support.made_up_cuda import (
    bare_machine,
    compiler,
    install,
    install_cudnn,
    on_path,
    touch,
)

from guided_diffusion_jt.kernels import cuda, toolkit


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    return bare_machine(tmp_path, monkeypatch)


def links(machine):
    return machine / "home" / ".cache" / "jittor" / "medsegdiff_cuda"


def refusal(machine):
    with pytest.raises(UserError) as caught:
        toolkit.prepare(links(machine))
    assert not links(machine).exists(), "nothing half-written"
    return str(caught.value)


# ---- Where nvcc is found ----


def linked_on_path(machine, home, monkeypatch):
    (machine / "path").mkdir()
    (machine / "path" / "nvcc").symlink_to(home / "bin" / "nvcc")


def in_cuda_home(machine, home, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(home))


def in_cuda_path(machine, home, monkeypatch):
    monkeypatch.setenv("CUDA_PATH", str(home))


def in_usr_local(machine, home, monkeypatch):
    (machine / "usr" / "local").mkdir(parents=True)
    (machine / "usr" / "local" / "cuda").symlink_to(home)


def of_jittor(machine, home, monkeypatch):
    (machine / "home" / ".cache" / "jittor" / "jtcuda").mkdir(parents=True)
    (machine / "home" / ".cache" / "jittor" / "jtcuda" / "cuda12.2_cudnn8_linux").symlink_to(home)


def named_by_the_user(machine, home, monkeypatch):
    monkeypatch.setenv("nvcc_path", str(home / "bin" / "nvcc"))


WAYS = (on_path, linked_on_path, in_cuda_home, in_cuda_path, in_usr_local, of_jittor, named_by_the_user)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("version", ["11.8", "12.2"])
def test_a_whole_toolkit_is_taken_as_it_is(machine, monkeypatch, way, version):
    nvcc = install(machine / "toolkit", version)
    way(machine, machine / "toolkit", monkeypatch)
    assert toolkit.prepare(links(machine)) == str(nvcc)
    assert toolkit.lack(links(machine)) == "" and not links(machine).exists()


def test_libraries_of_the_system_count(machine, monkeypatch):
    """Debian's packages put everything into /usr."""
    system = "lib/x86_64-linux-gnu" if os.uname().machine == "x86_64" else "lib/aarch64-linux-gnu"
    nvcc = install(machine / "usr", libraries=system)
    on_path(machine, machine / "usr", monkeypatch)
    assert toolkit.prepare(links(machine)) == str(nvcc)


@pytest.mark.parametrize("version, taken", [("10.2", False), ("11.0", True), ("12.9", True), ("13.0", False)])
def test_only_versions_with_which_jittor_works_are_taken(machine, monkeypatch, version, taken):
    nvcc = install(machine / "toolkit", version)
    on_path(machine, machine / "toolkit", monkeypatch)
    if taken:
        assert toolkit.prepare(links(machine)) == str(nvcc)
    else:
        assert f"{nvcc} of CUDA {version}; expected the compiler nvcc of CUDA 11 or 12" in refusal(machine)


def test_another_toolkit_is_taken_where_the_first_one_does_not_serve(machine, monkeypatch):
    install(machine / "new", "13.1")
    nvcc = install(machine / "old")
    on_path(machine, machine / "new", monkeypatch)
    in_cuda_home(machine, machine / "old", monkeypatch)
    assert toolkit.prepare(links(machine)) == str(nvcc)


def test_a_machine_without_nvcc(machine):
    said = refusal(machine)
    assert "found no nvcc on PATH, in CUDA_HOME, CUDA_PATH or /usr/local/cuda" in said and "Install" in said
    assert toolkit.lack(links(machine)).startswith("no nvcc on PATH")


def test_an_nvcc_that_does_not_run(machine, monkeypatch):
    nvcc = install(machine / "toolkit")
    nvcc.write_text("#!/bin/sh\nexit 127\n")
    on_path(machine, machine / "toolkit", monkeypatch)
    assert f"{nvcc}, which does not run" in refusal(machine)


def test_an_nvcc_that_refuses_the_compiler(machine, monkeypatch):
    install(machine / "toolkit")
    compiler(
        machine / "toolkit" / "bin" / "nvcc", rest="echo 'host_config.h: error: unsupported GNU version!' >&2; exit 1"
    )
    on_path(machine, machine / "toolkit", monkeypatch)
    said = refusal(machine)
    assert "refuses g++: host_config.h: error: unsupported GNU version!" in said and "cc_path" in said


# ---- The parts next to it ----


@pytest.mark.parametrize("part", toolkit.PARTS, ids=lambda part: part.name)
def test_a_missing_part_is_named_with_its_package(machine, monkeypatch, part):
    install(machine / "toolkit", without=[part.name])
    on_path(machine, machine / "toolkit", monkeypatch)
    said = refusal(machine)
    assert f"without {part.name} (" in said and f"pip install {part.package.format(12)}" in said
    for file in (part.header, *(f"lib{name}.so" for name in part.libraries)):
        assert file in said
    for other in toolkit.PARTS:
        assert other == part or other.header not in said


@pytest.mark.parametrize("file", ["include/cudnn_ops_infer.h", "lib64/libcudnn_cnn_train.so", "lib64/libcurand.so"])
def test_a_part_of_a_part_is_missing(machine, monkeypatch, file):
    install(machine / "toolkit")
    (machine / "toolkit" / file).unlink()
    on_path(machine, machine / "toolkit", monkeypatch)
    assert f"({Path(file).name})" in refusal(machine)


def test_all_that_is_missing_is_in_one_message(machine, monkeypatch):
    compiler(machine / "toolkit" / "bin" / "nvcc", "11.8")
    on_path(machine, machine / "toolkit", monkeypatch)
    said = refusal(machine)
    assert all(f"{part.name} (" in said and part.package.format(11) in said for part in toolkit.PARTS)


def resolved(machine, name):
    return Path(os.path.realpath(links(machine) / name))


@pytest.mark.parametrize("newer", [False, True], ids=["no cuDNN", "cuDNN 9"])
def test_parts_of_pip_are_linked(machine, monkeypatch, newer):
    """cuDNN 9 in the toolkit has other headers and libraries, and must not be mixed with version 8."""
    nvcc = install(machine / "toolkit", without=["cuDNN 8"])
    if newer:
        touch(
            machine / "toolkit", "include/cudnn.h", "include/cudnn_ops.h", "lib64/libcudnn.so", "lib64/libcudnn_ops.so"
        )
    install_cudnn(machine)
    on_path(machine, machine / "toolkit", monkeypatch)
    made = toolkit.prepare(links(machine))
    assert made == str(links(machine) / "bin" / "nvcc")
    wheel = machine / "site" / "nvidia" / "cudnn"
    assert resolved(machine, "include/cuda_runtime.h") == machine / "toolkit" / "include" / "cuda_runtime.h"
    assert resolved(machine, "include/cudnn_ops_infer.h") == wheel / "include" / "cudnn_ops_infer.h"
    assert resolved(machine, "include/cudnn.h") == wheel / "include" / "cudnn.h"
    assert resolved(machine, "lib64/libcudnn.so") == wheel / "lib" / "libcudnn.so.8"
    assert resolved(machine, "lib64/libcudnn_adv_infer.so.8") == wheel / "lib" / "libcudnn_adv_infer.so.8"
    assert resolved(machine, "lib64/libcudart.so") == machine / "toolkit" / "lib64" / "libcudart.so"
    assert not (links(machine) / "bin" / "nvcc").is_symlink(), "Jittor follows links"
    said = subprocess.run([made, "--version"], capture_output=True, text=True, check=True).stdout
    assert "release 12.2" in said
    # A process that this one starts has the linked nvcc in its environment, and finds the same.
    monkeypatch.setenv("nvcc_path", made)
    assert toolkit.prepare(links(machine)) == made
    assert str(nvcc) in (links(machine) / "bin" / "nvcc").read_text()


def test_two_versions_of_cudnn_are_not_mixed(machine, monkeypatch):
    """Jittor would take the first libcudnn.so that it finds, of version 9, with the other libraries of version 8."""
    install(machine / "toolkit", without=["cuDNN 8"])
    touch(machine / "toolkit", "lib64/libcudnn.so", "include/cudnn_ops_infer.h")
    touch(machine / "usr" / "lib", *(f"lib{name}.so" for name in toolkit._CUDNN))
    on_path(machine, machine / "toolkit", monkeypatch)
    toolkit.prepare(links(machine))
    assert resolved(machine, "lib64/libcudnn.so") == machine / "usr" / "lib" / "libcudnn.so"


@pytest.mark.parametrize("libraries", ["lib", f"targets/{os.uname().machine}-linux/lib"])
def test_a_toolkit_with_other_folders_is_linked(machine, monkeypatch, libraries):
    """conda's has its libraries in lib."""
    install(machine / "toolkit", libraries=libraries)
    on_path(machine, machine / "toolkit", monkeypatch)
    assert toolkit.prepare(links(machine)) == str(links(machine) / "bin" / "nvcc")
    assert resolved(machine, "lib64/libcudart.so") == machine / "toolkit" / libraries / "libcudart.so"


def test_links_to_a_toolkit_that_has_moved_are_replaced(machine, monkeypatch):
    install(machine / "old", libraries="lib")
    on_path(machine, machine / "old", monkeypatch)
    toolkit.prepare(links(machine))
    os.rename(machine / "old", machine / "new")
    on_path(machine, machine / "new", monkeypatch)
    toolkit.prepare(links(machine))
    assert resolved(machine, "lib64/libcudart.so") == machine / "new" / "lib" / "libcudart.so"
    assert str(machine / "new") in (links(machine) / "bin" / "nvcc").read_text()


# ---- The devices that are found, and the environment of the import ----


@pytest.fixture
def one_gpu(machine, monkeypatch):
    monkeypatch.setattr(cuda, "_driver_gpus", lambda: ["a GPU, 8.0 GiB"])
    monkeypatch.setenv("JITTOR_HOME", str(machine / "home"))


def test_a_gpu_counts_where_the_toolkit_is_whole(machine, monkeypatch, one_gpu):
    install(machine / "toolkit")
    on_path(machine, machine / "toolkit", monkeypatch)
    assert cuda.find_devices().gpus == ("a GPU, 8.0 GiB",)
    for name in ("cuDNN 8", "cuBLAS", "CUB"):
        install(machine / f"without {name}", without=[name])
        on_path(machine, machine / f"without {name}", monkeypatch)
        found = cuda.find_devices()
        assert not found.gpus and name in found.missing and "pip install" in found.missing

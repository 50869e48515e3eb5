"""Made-up installations of CUDA, for tests on machines without one."""

import sys

from guided_diffusion_jt.kernels import toolkit

HEADERS_OF_8 = ("cudnn.h", "cudnn_ops_infer.h")
NVCC = """#!/bin/sh
case "$*" in
    *--version*) echo "Cuda compilation tools, release {version}, V{version}.140" ;;
    *) {rest} ;;
esac
"""


def bare_machine(tmp_path, monkeypatch):
    """Return the root of a machine without CUDA: its /usr is empty, and nothing is on PATH."""
    monkeypatch.setattr(toolkit, "_SYSTEM", tmp_path / "usr")
    monkeypatch.setattr(toolkit, "_PLACES", (tmp_path / "usr" / "local" / "cuda",))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    for name in ("nvcc_path", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("cc_path", "g++")
    return tmp_path


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def compiler(path, version="12.2", rest="exit 0"):
    """Write an nvcc of a version; `rest` is what its shell does when it compiles."""
    touch(path.parent, path.name)
    path.write_text(NVCC.format(version=version, rest=rest))
    path.chmod(0o755)


def install(home, version="12.2", without=(), libraries="lib64"):
    """Install a toolkit at `home`, without some parts, and return the Path of its nvcc."""
    compiler(home / "bin" / "nvcc", version)
    for part in toolkit.PARTS:
        if part.name not in without:
            touch(home / "include", part.header)
            touch(home / libraries, *(f"lib{name}.so" for name in part.libraries))
    if "cuDNN 8" not in without:
        touch(home / "include", *HEADERS_OF_8)
    return home / "bin" / "nvcc"


def install_package(site, name, *files):
    """Install a package of pip with these files."""
    touch(site, *files)
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    touch(site, f"{info}/METADATA", f"{info}/RECORD")
    (site / info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (site / info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def install_cudnn(machine):
    """Install cuDNN 8 as pip does."""
    libraries = [f"lib{name}.so.8" for name in toolkit._CUDNN] + ["libcudnn_adv_infer.so.8"]
    names = [f"include/{name}" for name in HEADERS_OF_8] + [f"lib/{name}" for name in libraries]
    install_package(machine / "site", "nvidia-cudnn-cu12", *(f"nvidia/cudnn/{name}" for name in names))


def on_path(machine, home, monkeypatch):
    monkeypatch.setenv("PATH", str(home / "bin"))

"""The CUDA toolkit with which Jittor compiles for a GPU: found among what is installed, never downloaded.

Jittor 1.3.11 takes the path of nvcc, and expects headers and libraries in folders next to it and in those of the
system, as NVIDIA's installer and packages put them there. It links libraries of cuDNN 8 that cuDNN 9 does not have, and
there is no cuDNN 8 for CUDA 13. Where a part lies elsewhere, such as in a package of pip, a folder of links looks as
Jittor expects it.
"""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.files import write_atomic
from guided_diffusion_jt.kernels.links import replace_link

VERSIONS = (11, 12)  # of CUDA; before 11, Jittor would download CUB
_WHERE = "--device cuda with --backend jittor"
_PLACES = (Path("/usr/local/cuda"), Path("/opt/cuda"))
_SYSTEM = Path("/usr")


@dataclass(frozen=True)
class Part:
    """Something that Jittor needs next to nvcc.

    name:      its name for the user.
    header:    a file in the folder that Jittor includes.
    libraries: names of libraries without "lib" and ".so".
    package:   its package for pip, with {} in place of CUDA's version.
    """

    name: str
    header: str
    libraries: tuple
    package: str


_CUDNN = tuple(f"cudnn{name}" for name in ("", "_ops_infer", "_ops_train", "_cnn_infer", "_cnn_train"))
PARTS = (
    Part("the CUDA runtime", "cuda_runtime.h", ("cudart",), "nvidia-cuda-runtime-cu{}"),
    Part("CUB", "cub/cub.cuh", (), "nvidia-cuda-cccl-cu{}"),
    Part("cuBLAS", "cublas.h", ("cublas", "cublasLt"), "nvidia-cublas-cu{}"),
    Part("cuDNN 8", "cudnn_ops_infer.h", _CUDNN, '"nvidia-cudnn-cu{}<9"'),
    Part("cuRAND", "curand.h", ("curand",), "nvidia-curand-cu{}"),
    Part("cuFFT", "cufft.h", ("cufft",), "nvidia-cufft-cu{}"),
    Part("cuSPARSE", "cusparse.h", ("cusparse",), "nvidia-cusparse-cu{}"),
)


def prepare(folder):
    """Return the path of an nvcc around which Jittor finds all that it needs.

    folder: Path for links to parts that lie where Jittor does not look.
    Raises `UserError` that names everything that is missing, with what to install.
    """
    compiler, expected, everywhere = _found(folder)
    if not any(expected.lacks(part) for part in PARTS):
        return str(compiler)
    return _linked(compiler, expected, everywhere, folder)


def lack(folder):
    """Return in words what is missing and how to install it, "" if nothing is. folder: as for `prepare`."""
    try:
        _found(folder)
    except UserError as error:
        _, found, _, fix = error.parts
        return f"{found}; {fix.rstrip('.')}"
    return ""


def _found(folder):
    """Return the Path of nvcc, and the results of `_groups` for it, or raise `UserError`."""
    compiler, version = _compiler(folder)
    _check_host_compiler(compiler)
    expected, everywhere = _groups(compiler)
    missing = [part for part in PARTS if everywhere.lacks(part)]
    if missing:
        files = [f"{part.name} ({', '.join(everywhere.lacks(part))})" for part in missing]
        packages = " ".join(part.package.format(version) for part in missing)
        raise found_expected(
            _WHERE,
            f"{compiler} without {', '.join(files)}",
            "CUDA's toolkit with its libraries and cuDNN 8",
            f"Install them: pip install {packages}",
        )
    return compiler, expected, everywhere


def _compiler(folder):
    """Return the Path and the major version of the first nvcc that Jittor can use, or raise `UserError`."""
    found = []
    for path in dict.fromkeys(_compilers(folder)):
        if not os.access(path, os.X_OK):
            continue
        done = subprocess.run([path, "--version"], capture_output=True, text=True)
        match = re.search(r"release (\d+)\.(\d+)", done.stdout)
        if match and int(match[1]) in VERSIONS:
            return Path(os.path.realpath(path)), int(match[1])
        found.append(f"{path} of CUDA {match[1]}.{match[2]}" if match else f"{path}, which does not run")
    raise found_expected(
        _WHERE,
        "; ".join(found) or "no nvcc on PATH, in CUDA_HOME, CUDA_PATH or /usr/local/cuda",
        f"the compiler nvcc of CUDA {VERSIONS[0]} or {VERSIONS[1]}",
        "Install CUDA's toolkit 12 (https://developer.nvidia.com/cuda-toolkit-archive), or let Jittor do it: python -m "
        "jittor_utils.install_cuda",
    )


def _compilers(folder):
    """Yield the paths at which nvcc may be, the user's own first."""
    chosen = os.environ.get("nvcc_path")
    if chosen and not Path(chosen).is_relative_to(folder):  # a parent process leaves the linked one in the environment
        yield chosen
    on_path = shutil.which("nvcc")
    if on_path:
        yield on_path
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    for home in (*filter(None, homes), *_PLACES):
        yield os.path.join(home, "bin", "nvcc")
    yield from sorted(map(str, folder.parent.glob("jtcuda/*/bin/nvcc")), reverse=True)  # of jittor_utils.install_cuda
    yield from (str(path) for path in _packaged_files() if path.name == "nvcc")


def _packaged_files():
    """Yield the Path of each file of the packages of pip whose names start with nvidia-."""
    for distribution in metadata.distributions():
        if (distribution.metadata["Name"] or "").startswith("nvidia-"):
            yield from (Path(entry.locate()) for entry in distribution.files or ())


def _check_host_compiler(compiler):
    """Raise `UserError` unless nvcc accepts the C++ compiler that Jittor uses."""
    host = os.environ.get("cc_path") or "g++"
    done = subprocess.run([compiler, f"-ccbin={host}", "-x", "cu", "-E", os.devnull], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.splitlines()
        reason = next((line.strip() for line in said if "error" in line), f"exit code {done.returncode}")
        raise found_expected(
            _WHERE,
            f"{compiler}, which refuses {host}: {reason}",
            "a C++ compiler that this nvcc accepts",
            "Install an older g++ and set cc_path to it: export cc_path=g++-11",
        )


@dataclass(frozen=True)
class _Group:
    """Folders that are searched for parts.

    headers, libraries: tuples of Paths.
    runtime:            the folders for the CUDA runtime, which Jittor opens in one of them alone.
    everywhere:         False: as Jittor searches, which takes each file where it finds it first. True: a part is taken
                        from the first folder with all its libraries, which may have versions after their names, such as
                        libcudnn.so.8.
    """

    headers: tuple
    libraries: tuple
    runtime: tuple
    everywhere: bool

    def header(self, part):
        """Return the folder with the header of a `Part`, or None."""
        return next((folder for folder in self.headers if (folder / part.header).is_file()), None)

    def found(self, part):
        """Return name -> Path of all libraries of a `Part`, in one folder so that no versions are mixed, or {}."""
        for folder in self._folders(part):
            paths = {name: self._library(folder, name) for name in part.libraries}
            if all(paths.values()):
                return paths
            if any(paths.values()) and not self.everywhere:
                return {}
        return {}

    def _folders(self, part):
        return self.runtime if "cudart" in part.libraries else self.libraries

    def _library(self, folder, name):
        """Return the Path of a library in a folder, or None."""
        paths = [folder / f"lib{name}.so"]
        if self.everywhere:
            paths += sorted(folder.glob(f"lib{name}.so.*"))
        return next((path for path in paths if path.is_file()), None)

    def lacks(self, part):
        """Return the files of a `Part` that are missing, all its libraries if no folder has them together."""
        lacking = [] if self.header(part) else [part.header]
        if part.libraries and not self.found(part):
            folders = self._folders(part)
            absent = [name for name in part.libraries if not any(self._library(folder, name) for folder in folders)]
            lacking += [f"lib{name}.so" for name in absent or part.libraries]
        return lacking


def _groups(compiler):
    """Return the `_Group` of the folders in which Jittor looks next to an nvcc, and that of all folders."""
    home = compiler.parent.parent
    machine = "x86_64" if platform.machine() == "x86_64" else "aarch64"
    target = home / "targets" / f"{machine}-linux"
    system = _SYSTEM / "lib" / f"{machine}-linux-gnu"
    own = system if compiler == _SYSTEM / "bin" / "nvcc" else home / "lib64"
    headers = (home / "include", target / "include", _SYSTEM / "include")
    libraries = (home / "bin", own, target / "lib", system, _SYSTEM / "lib")
    packaged = list(_packaged_files())
    more_headers = [_base(path, part.header) for path in packaged for part in PARTS if _ends(path, part.header)]
    more = [home / "lib"] + [path.parent for path in packaged if re.match(r"lib.+\.so", path.name)]
    every = (*libraries, *dict.fromkeys(more))
    return (
        _Group(headers, libraries, (own,), everywhere=False),
        _Group((*headers, *dict.fromkeys(more_headers)), every, every, everywhere=True),
    )


def _ends(path, header):
    return path.parts[-len(Path(header).parts) :] == Path(header).parts


def _base(path, header):
    """Return the folder that is searched for a header which lies at `path`."""
    return path.parents[len(Path(header).parts) - 1]


def _linked(compiler, expected, everywhere, folder):
    """Make the folder of links to all parts, and return the path of the nvcc in it.

    expected, everywhere: the results of `_groups`. A part that is whole where Jittor looks comes from there.
    """
    for name in ("bin", "include", "lib64"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    targets = {}  # link -> target; the first one counts
    # Parts from elsewhere come first: the toolkit may have another version of their files.
    for part in sorted(PARTS, key=lambda part: not expected.lacks(part)):
        group = everywhere if expected.lacks(part) else expected
        for entry in _neighbours(group.header(part), "*"):
            targets.setdefault(folder / "include" / entry.name, entry)
        for name, path in group.found(part).items():
            targets.setdefault(folder / "lib64" / f"lib{name}.so", path)
            # Libraries open further ones of their folder, by names with versions.
            for entry in _neighbours(path.parent, "lib*.so*"):
                targets.setdefault(folder / "lib64" / entry.name, entry)
    for link, target in targets.items():
        replace_link(link, target)
    script = folder / "bin" / "nvcc"
    # No link: Jittor follows one to the folder that it came from.
    write_atomic(script, f'#!/bin/sh\nexec "{compiler}" "$@"\n'.encode())
    script.chmod(0o755)
    return str(script)


def _neighbours(folder, pattern):
    """Return the files of a folder that belong to a part; none of a system's, which hold everything."""
    system = (_SYSTEM / "include", _SYSTEM / "lib")
    return [] if any(folder.is_relative_to(place) for place in system) else folder.glob(pattern)

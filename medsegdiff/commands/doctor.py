"""Show versions, devices, tools and caches, and what is missing: text to paste into a bug report.

The text holds no user name; ~ stands for the home folder. With --backend a network of that backend is run as well.
Exit code 0 also where something is missing; 1 if the network of --backend does not run.
"""

import argparse
import getpass
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from guided_diffusion_core import command_line
from guided_diffusion_core.backends import BACKENDS
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system import environment, processes
from medsegdiff import __version__

PACKAGES = ("numpy", "scipy", "nibabel", "Pillow", "safetensors", "blobfile", "scikit-image", "tifffile")
# Package -> the extra that brings it, and what does not work without it.
OPTIONAL = {
    "MedPy": ("surfaces", "score --surfaces True"),
    "surface-distance": ("surfaces", "score --surfaces True"),
    "SimpleITK": ("surfaces", "sample --fusion staple"),
    "mpi4py": ("mpi", "several processes of Jittor"),
    "onednn-cpu-gomp": ("jittor", "fast convolutions in Jittor"),
    "onednn-devel-cpu-gomp": ("jittor", "fast convolutions in Jittor"),
}
JITTOR_CACHE = Path.home() / ".cache" / "jittor"

# One network of 32 pixels, in a process of its own: a framework that crashes ends that process alone.
FORWARD = """
import sys
import numpy as np
from guided_diffusion_core.backends import backend_module, start_backend
runtime = start_backend({backend!r}, device={device!r})
script_util = backend_module({backend!r}, "script_util")
model, _ = script_util.create_model_and_diffusion(image_size=32, num_channels=32, num_heads=1)
model.eval()
x = runtime.to_tensor(np.zeros((2, 5, 32, 32), np.float32), dtype=runtime.precision())
t = runtime.to_tensor([1, 1], dtype=runtime.precision())
with runtime.no_grad():
    values = runtime.to_numpy(model(x, t)[0])
assert np.isfinite(values).all(), "the output is not finite"
print(runtime.current.device)
"""
# The devices that a backend finds. Jittor is not imported for it.
DEVICES = """
import importlib
found = importlib.import_module({package!r} + ".runtime").find_devices()
print(", ".join(map(str, found.devices())) + (f"; no GPU: {{found.missing}}" if found.missing else ""))
"""
GIB = 2**30


def add_flags(parser):
    """Add the flags."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--backend",
        choices=tuple(BACKENDS),
        help="also run a small network of this backend; Jittor compiles itself first where it has not yet",
    )
    command_line.add_device(parser, "auto")


def run(args):
    """Print the report; return 1 if the network of `--backend` does not run."""
    missing = []
    lines = [*_system(), *_packages(missing), *_backends(missing), *_tools(missing), *_storage(missing)]
    runs = True
    if args.backend:
        runs, found = _run_network(args.backend, args.device)
        lines.append(_line(f"{args.backend} runs", f"yes, on {found}" if runs else f"no: {found}"))
    lines.append("missing:" if missing else "missing: nothing")
    lines += [f"  {text}" for text in missing]
    print(without_names("\n".join(lines)))
    return 0 if runs else 1


def without_names(text):
    """Return a text with ~ for the home folder and USER for the user's name in other paths."""
    text = text.replace(str(Path.home()), "~")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a process without an account
        return text
    return re.sub(rf"(?<=/){re.escape(user)}(?=/|$)", "USER", text, flags=re.MULTILINE)


def _line(name, value):
    return f"{name + ':':<24}{value}"


def _version(distribution):
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _system():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return [
        _line("medsegdiff", __version__),
        _line("Python", f"{platform.python_version()} ({sys.executable})"),
        _line("system", platform.platform()),
        _line("processor", f"{_processor()}, {cores} cores for this process; OMP_NUM_THREADS {threads}"),
        _line("memory", _memory()),
    ]


def _processor():
    """Return the model of the processor from /proc/cpuinfo, or the machine's architecture."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _memory():
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GB"
    except (ValueError, OSError):
        return "unknown"


def _packages(missing):
    lines = []
    for name in PACKAGES:
        version = _version(name)
        lines.append(_line(name, version or "missing"))
        if version is None:
            missing.append(f"{name}: pip install {name}")
    for name, (extra, use) in OPTIONAL.items():
        version = _version(name)
        lines.append(_line(name, version or f"not installed; it is for: {use}"))
        if version is None and _wanted(extra):
            missing.append(f"{name}, for {use}: in the checkout, pip install .[{extra}]")
    return lines


def _wanted(extra):
    """Return whether what an extra brings is missed; what serves a backend alone is not missed without it."""
    framework = {"jittor": "jittor", "mpi": "jittor"}.get(extra)
    return framework is None or importlib.util.find_spec(framework) is not None


def _backends(missing):
    lines = []
    installed = 0
    for backend in BACKENDS.values():
        version = _version(backend.distribution)
        found = importlib.util.find_spec(backend.framework) is not None
        installed += found
        lines.append(
            _line(f"backend {backend.name}", f"{backend.distribution} {version}" if found else "not installed")
        )
        if found:
            code = DEVICES.format(package=backend.package)
            lines.append(_line(f"{backend.name}'s devices", _output(sys.executable, "-c", code)))
    if not installed:
        names = " or ".join(f"pip install .[{name}]" for name in BACKENDS)
        missing.append(f"a backend: in the checkout, {names}")
    if importlib.util.find_spec("torch") is not None:
        lines.append(_line("PyTorch's CPU", _output(sys.executable, "-c", TORCH_CPU)))
    driver = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    lines.append(_line("NVIDIA's driver", driver))
    return lines


TORCH_CPU = (
    "import torch; onednn = torch.backends.mkldnn.is_available(); "
    "print(f'{torch.get_num_threads()} threads, oneDNN {onednn}')"
)


def _tools(missing):
    lines = []
    checks = [("Python's version", environment.check_python)]
    if importlib.util.find_spec("jittor") is not None:
        checks += [("compiler", environment.check_compiler), ("Python's headers", environment.python_config)]
    problems = {}
    for name, check in checks:
        try:
            check()
        except UserError as error:
            problems[name] = str(error)
    compiler = os.environ.get("cc_path") or "g++"
    lines.append(_line("compiler", _output(compiler, "--version")))
    lines.append(_line("Python's headers", "missing" if "Python's headers" in problems else _headers()))
    lines += [_line(name, found) for name, found in processes.launchers().items()]
    missing += problems.values()
    return lines


def _headers():
    try:
        return environment.python_config()
    except UserError:
        return "not found; only Jittor needs them"


def _output(*command):
    """Return the first line that a program prints, or "not found"."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return "not found"
    printed = (done.stdout if done.returncode == 0 else done.stderr).strip()
    return printed.splitlines()[0 if done.returncode == 0 else -1] if printed else "not found"


def _storage(missing):
    lines = []
    if JITTOR_CACHE.is_dir():
        size = sum(path.stat().st_size for path in JITTOR_CACHE.rglob("*") if path.is_file() and not path.is_symlink())
        cores = list(JITTOR_CACHE.rglob("jittor_core*.so"))
        state = f"{size / GIB:.2f} GB, {len(cores)} compiled cores"
        lines.append(_line("Jittor's cache", f"{JITTOR_CACHE}, {state}"))
    else:
        lines.append(_line("Jittor's cache", "none; Jittor compiles itself at its first start"))
    for name, folder in (("disk of this folder", Path.cwd()), ("disk of the home", Path.home())):
        free = shutil.disk_usage(folder).free / GIB
        lines.append(_line(name, f"{free:.1f} GB free ({folder})"))
        if free < 1:
            missing.append(f"room on the {name}: {free:.1f} GB are free; expected at least 1 GB")
    return lines


def _run_network(backend, device):
    """Run a small network of a backend. Return (True, its device), or (False, the last line of its error)."""
    command = [sys.executable, "-c", FORWARD.format(backend=backend, device=device)]
    done = subprocess.run(command, capture_output=True, text=True)
    ran = done.returncode == 0
    lines = (done.stdout if ran else done.stderr).strip().splitlines()
    return ran, lines[-1] if lines else f"exit code {done.returncode}"

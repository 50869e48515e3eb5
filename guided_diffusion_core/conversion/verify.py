"""Verify a conversion: compare the networks of two files on one random input, in both backends.

Each backend runs in a separate process, since a Jittor process does not admit torch.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from guided_diffusion_core import checkpoints
from guided_diffusion_core.backends import BACKENDS, COMPARED, backend_module, start_backend
from guided_diffusion_core.config import setting, setting_names
from guided_diffusion_core.conversion import convert
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.networks.family import as_prediction
from guided_diffusion_core.networks.registry import family_of
from guided_diffusion_core.system.devices import CPU

INPUT_SEED = 0
# Allowed difference of the backends, as a share of the largest output. Sums in another order gave 2.7e-6 at width 128
# and 64 px, and 1.5e-6 at width 32.
BACKENDS_AGREE = 1e-4
ROOT = Path(__file__).resolve().parents[2]


def check_backends(device):
    """Refuse `--verify` if a framework is missing, or a device that is not there for both; `UserError`.

    device: value of `--device`.
    """
    for name in COMPARED:
        distribution = BACKENDS[name].distribution
        if importlib.util.find_spec(BACKENDS[name].framework) is None:
            raise found_expected(
                "--verify",
                f"no {distribution}",
                "both frameworks, whose outputs it compares",
                f"Install {distribution} or leave the flag out: converting needs neither.",
            )
    if device != CPU:
        for name in COMPARED:
            _in_a_process(name, f"check_device({name!r}, {device!r})")


def verify(source_path, target_path, given, config, device="cpu", key=""):
    """Compare two files bitwise, and the outputs that both backends compute from them. Prints the differences.

    source_path, target_path: the file that was converted, and the result.
    given:  settings with which the source was read.
    config: `Config` of the conversion.
    device: on which both backends compute.
    key:    the source's state dict (`convert.read`).
    Returns the exit code: 0; or 1 if any array, or any output of the same backend, differs, or if the outputs of the
    backends differ by more than `BACKENDS_AGREE` allows.
    """
    names = ["network", "normalisation", *setting_names("model", "diffusion", model=config.model)]
    shown = {**given, **{name: setting(config, name) for name in names}}
    source = convert.read(source_path, given, key)
    target = convert.read(target_path, shown)
    unequal = convert.differing(source, target)
    total = len(source.arrays)
    print(f"--verify: {total - len(unequal)} of {total} tensors are bitwise the same")
    with tempfile.TemporaryDirectory() as folder:
        for name, one in (("IN", source), ("OUT", target)):
            content = checkpoints.to_bytes(one.step, config, one.network, one.arrays)
            (Path(folder) / f"{name}.safetensors").write_bytes(content)
        outputs = {backend: _outputs(backend, folder, device) for backend in COMPARED}
    worst = 0.0
    for backend, found in outputs.items():
        difference = _largest(found["IN"], found["OUT"])
        worst = max(worst, difference)
        print(f"--verify: {backend}, IN against OUT: largest difference {difference:.3g}")
    reference, candidate = (outputs[backend]["OUT"] for backend in COMPARED)
    scale = max(float(np.abs(value).max()) for value in reference.values())
    apart = _largest(reference, candidate)
    print(f"--verify: OUT, {' against '.join(COMPARED)}: largest difference {apart:.3g} (largest output {scale:.3g})")
    agree = apart <= BACKENDS_AGREE * scale  # False for NaN
    return 1 if unequal or worst or not agree else 0


def _largest(first, second):
    """Return the largest absolute difference of two dicts of arrays."""
    return max(float(np.abs(first[name].astype(np.float64) - second[name]).max()) for name in first)


def _outputs(backend, folder, device):
    """Run a network of each file in a new process. Returns "IN" or "OUT" -> name of the output -> array."""
    _in_a_process(backend, f"run({backend!r}, {folder!r}, {device!r})")
    with np.load(Path(folder) / f"{backend}.npz") as file:
        return {
            name: {key.partition("/")[2]: file[key] for key in file if key.startswith(f"{name}/")}
            for name in ("IN", "OUT")
        }


def _in_a_process(backend, call):
    """Call a function of this module in a new process, where the backend may start. Raises `UserError` if it fails."""
    code = (
        "from guided_diffusion_core import command_line; from guided_diffusion_core.conversion import verify; "
        f"command_line.run_command(lambda: verify.{call})"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode:
        message = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"--verify: {backend} could not run: {message}")


def check_device(backend, device):
    """Start a backend on a device. Raises `UserError` if it is not there."""
    start_backend(backend, device=device)


def run(backend, folder, device):
    """Write the outputs of folder/IN.safetensors and OUT.safetensors to folder/<backend>.npz."""
    runtime = start_backend(backend, device=device)
    load_network = backend_module(backend, "build").load_network
    outputs = {}
    for name in ("IN", "OUT"):
        network, config = load_network(Path(folder) / f"{name}.safetensors")
        generator = np.random.RandomState(INPUT_SEED)
        inputs = []
        for key, shape in family_of(config.model).inputs(config.model).items():
            time = np.array([config.diffusion.diffusion_steps // 2])
            array = time if key == "t" else generator.standard_normal((1, *shape))
            inputs.append(runtime.to_tensor(array, dtype=runtime.precision()))
        with runtime.no_grad():
            prediction = as_prediction(network(*inputs))
        for key, value in prediction._asdict().items():
            if value is not None:
                outputs[f"{name}/{key}"] = runtime.to_numpy(value)
    np.savez(Path(folder) / f"{backend}.npz", **outputs)

"""Families of MedSegDiff's cases with checkpoints: resuming, conversion, validation during training.

Each is a function(port, case, weights, inputs, recorder) that runs in a backend's own process.
"""

import hashlib
import tempfile
from pathlib import Path

import numpy as np

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import SamplingConfig, resolve
from guided_diffusion_core.conversion import convert
from parity.families import record_state
from parity.medsegdiff_families import Images, record_forward_backward, record_steps, training_config, training_loop


def run_resume(port, case, weights, inputs, recorder):
    """Train, save a checkpoint, and record the steps of a new loop that resumes from it."""
    half = case.settings["half"]
    config = training_config(case)
    first = training_loop(port, case, weights, recorder)
    for _ in first.run_loop(half):
        pass
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(folder, half, config, first.networks())
        step, _, networks = checkpoints.load_all(checkpoints.find_whole("last", folder))
    second = training_loop(port, case, weights, recorder, step, networks)
    record_forward_backward(second, recorder)
    record_steps(second, case, recorder)
    record_state(port, second.model, recorder, port.is_buffer, "buffer")


def run_validation(port, case, weights, inputs, recorder):
    """Record training steps and the masks that the moving average samples after each of them."""
    loop = training_loop(port, case, weights, recorder)
    config = training_config(case)
    images = Images(case, 2)
    sampling = SamplingConfig(**case.settings["sampling"])
    record_forward_backward(loop, recorder)
    for step, _ in loop.run_loop(case.settings["steps"]):
        members = loop.average_sampler(config, sampling)(images.images, ["first", "second"])
        recorder.add("members", f"step {step}", members.astype(recorder.verbs.precision()))
    record_state(port, loop.model, recorder, port.is_buffer, "buffer")


def run_conversion(port, case, weights, inputs, recorder):
    """Convert a checkpoint through all formats and back into a network; record bytes, weights and outputs."""
    verbs = recorder.verbs
    model = port.build(case)
    port.load(model, weights)
    arrays = {
        name: value.astype(np.float32) if value.dtype.kind == "f" else value
        for name, value in port.state(model).items()
    }
    config = resolve({**case.settings["model"], "normalisation": "none"})
    known = {**case.settings["model"], "normalisation": "none"}
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoints.save(folder, 7, config, {checkpoints.NETWORK: arrays}) / f"{checkpoints.NETWORK}.safetensors"
        for number, suffix in enumerate((".pt", ".pkl", ".safetensors")):
            source = path
            path = Path(folder) / f"converted{number}{suffix}"
            convert.write(path, convert.read(source, {} if source.suffix == ".safetensors" else known))
            if suffix != ".safetensors":  # its metadata has no fixed order
                digest = hashlib.sha256(path.read_bytes()).digest()
                recorder.add("table", f"bytes of {suffix}", np.frombuffer(digest, np.uint8))
        loaded, _, _ = port.module("script_util").load_model_and_diffusion(path)
    record_state(port, loaded, recorder, lambda name: True, "weight")
    tensors = {
        name: verbs.to_tensor(value, verbs.precision() if value.dtype.kind == "f" else None)
        for name, value in inputs.items()
    }
    with verbs.no_grad():
        for name, tensor in port.run(loaded, tensors, recorder.tape(2)).items():
            recorder.add("result", name, tensor)


FAMILIES = {"resume": run_resume, "validation": run_validation, "conversion": run_conversion}

"""What surrounds a backend's ensemble sampler: batches over cases, progress, files.

The sampler itself (`sample_util.EnsembleSampler`) turns images into masks; nothing here depends
on a framework.
"""
import json
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from guided_diffusion_core import checkpoint
from guided_diffusion_core.config import PRESETS, DataConfig, setting_names, take_over
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.files import write_atomic
from guided_diffusion_core.fusion import fuse_mean
from guided_diffusion_core.outputs import CaseWriter
from guided_diffusion_core.training import peak_memory_mib


def sampling_config(path, given, preset=None):
    """The configuration of a checkpoint with what the command line gives for data and sampling.

    path: safetensors file of the checkpoint. given: settings on the command line, by name.
    preset: a preset's name or None; it counts as if its settings had been given.
    With DPM-Solver, `diffusion_steps` is the number of the solver's steps, as the original's users mean
    it, and the schedule stays the trained one; a line on stderr says so.
    Raises `UserError` if a given setting of the network or the diffusion contradicts the checkpoint.
    """
    trained = checkpoint.read_config(path)
    chosen = take_over(given, PRESETS[preset] if preset else {})
    if chosen.get("dpm_solver", trained.sampling.dpm_solver):
        chosen |= _solver_steps(given, trained.diffusion.diffusion_steps)
    given = chosen
    for name, section in setting_names("model", "diffusion").items():
        expected = getattr(getattr(trained, section), name)
        if name in given and given[name] != expected:
            raise found_expected(f"--{name}", given[name], f"{expected!r}, with which {path} was trained",
                                 "Leave the flag out: the checkpoint decides.")
    used = {"seed", *setting_names("data", "sampling")}
    fresh = {"slices": DataConfig.slices, "data_dir": ""}
    return trained.replace(**{**fresh, **{name: value for name, value in given.items() if name in used}})


def _solver_steps(given, trained_steps):
    """The settings that `--diffusion_steps` stands for beside `--dpm_solver True`, {} where it is not given.

    Raises `UserError` where `--sample_steps` says something else.
    """
    steps = given.get("diffusion_steps", trained_steps)
    if "diffusion_steps" not in given or (steps == trained_steps and "sample_steps" in given):
        return {}
    if given.get("sample_steps", steps) != steps:
        raise found_expected("--diffusion_steps", f"{steps} beside --sample_steps {given['sample_steps']}",
                             "one number of steps for --dpm_solver True", "Leave --diffusion_steps out.")
    tqdm.write(f"--diffusion_steps {steps} with --dpm_solver True: {steps} steps of the solver (as --sample_steps "
               f"{steps}) on the trained schedule, which keeps its {trained_steps} steps", file=sys.stderr)
    return {"diffusion_steps": trained_steps, "sample_steps": steps}


def check_dataset(dataset, config, batch_size):
    """Refuse data that the network was not trained for; `UserError`."""
    if dataset.in_channels + 1 != config.model.in_ch:
        raise found_expected("--data_name", f"{dataset.in_channels} image channels",
                             f"{config.model.in_ch - 1}, with which the network was trained",
                             f"Use data like {config.data.data_name}'s, or another checkpoint.")
    if dataset.normalisation != config.normalisation:
        raise found_expected("--data_dir", f"intensities scaled as {dataset.normalisation!r}",
                             f"{config.normalisation!r}, as in training", "Use the --data_name of the training.")
    if batch_size < 1:
        raise found_expected("--batch_size", batch_size, "at least 1", "Use 1.")


def run_sampling(sampler, dataset, out_dir, batch_size, threshold, summary):
    """Sample every case of a dataset and write its files as soon as all its examples are done.

    sampler:    function of (images (N, C, S, S), keys) that returns (members, N, S, S).
    batch_size: examples per batch; each brings its whole ensemble.
    threshold:  probability from which on a pixel belongs to the mask.
    summary:    the resolved configuration, a JSON text; written to `run_report.json` with the seconds
                that the network took and the peak memory.
    """
    writer = CaseWriter(out_dir)
    queue = [(case, index) for case in dataset.cases() for index in case.indices]
    cases = len(dataset.cases())
    tqdm.write(f"sampling {len(queue)} images of {cases} cases; masks go to {out_dir}", file=sys.stderr)
    done, seconds = {}, 0.0
    with tqdm(total=len(queue), unit="image", desc="sampling", dynamic_ncols=True) as bar:
        for start in range(0, len(queue), batch_size):
            batch = queue[start:start + batch_size]
            examples = [dataset[index] for _, index in batch]
            began = time.perf_counter()
            images = np.stack([example.image for example in examples])
            members = sampler(images, [example.noise_key for example in examples])
            seconds += time.perf_counter() - began
            probability, uncertainty = fuse_mean(members)
            for position, (case, _) in enumerate(batch):
                fused = done.setdefault(case.name, [])
                fused.append((probability[position], uncertainty[position]))
                if len(fused) == len(case.indices):
                    planes, spread = map(np.stack, zip(*done.pop(case.name)))
                    writer.write(case, planes, spread, threshold)
            bar.update(len(batch))
    report = {**json.loads(summary), "cases": cases, "sampler_seconds": seconds, "memory_mib": peak_memory_mib()}
    write_atomic(Path(out_dir) / "run_report.json", (json.dumps(report, indent=2) + "\n").encode())
    tqdm.write(f"sampled {cases} cases in {seconds:.1f} s of network time", file=sys.stderr)

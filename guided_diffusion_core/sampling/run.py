"""What surrounds a backend's ensemble sampler: batches over cases, progress, files.

The sampler itself (`Method.sampler`) turns images into masks; nothing here depends on a framework.
"""

import sys
import time
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import PRESETS, ComputeConfig, DataConfig, setting, setting_names
from guided_diffusion_core.data.formats.labels import split_names
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.results.display import as_picture
from guided_diffusion_core.results.fusion import DEFINITIONS, fuse
from guided_diffusion_core.results.outputs import CaseWriter
from guided_diffusion_core.sampling.folder import part_of, report_path, require_same_run, write_report
from guided_diffusion_core.system.files import clear_unfinished
from guided_diffusion_core.system.process_memory import peak_memory_mib
from guided_diffusion_core.system.processes import Alone


def sampling_config(path, given, preset=None):
    """Return the configuration of a checkpoint with the settings of the command line for data and sampling.

    path:   safetensors file of the checkpoint.
    given:  settings on the command line, by name.
    preset: name of a preset or None; its settings count as given.
    Raises `UserError` if a given setting of the network or the diffusion contradicts the checkpoint.
    """
    trained = checkpoints.read_config(path)
    layers = (PRESETS[preset] if preset else {}, given)
    chosen = {**layers[0], **given}
    free = {"seed", *setting_names("data", "training", "sampling", "compute")}
    known = setting_names("model", "diffusion", model=trained.model)
    for name in chosen:
        if name in free or (name not in given and name not in known):  # a preset may be another network's
            continue
        expected = setting(trained, name)
        if chosen[name] != expected:
            raise found_expected(
                f"--{name}",
                chosen[name],
                f"{expected!r}, with which {path} was trained",
                "Leave the flag out: the checkpoint decides.",
            )
    if "labels" in given and trained.data.labels and split_names(given["labels"]) != split_names(trained.data.labels):
        raise found_expected(
            "--labels",
            repr(given["labels"]),
            f"{trained.data.labels!r}, with which {path} was trained",
            "Leave the flag out: the checkpoint decides.",
        )
    used = {"seed", *setting_names("data", "sampling", "compute")}
    fresh = {"slices": DataConfig.slices, "data_dir": "", "mixed_precision": ComputeConfig.mixed_precision}
    config = trained.replace(**fresh)
    for layer in layers:
        config = config.replace(**{name: value for name, value in layer.items() if name in used})
    return config


def check_dataset(dataset, config, batch_size):
    """Refuse data that the network was not trained for; `UserError`."""
    masks = config.model.mask_channels
    if dataset.in_channels != config.model.image_channels:
        raise found_expected(
            "--data_name",
            f"{dataset.in_channels} image channels",
            f"{config.model.image_channels}, with which the network was trained",
            f"Use data like {config.data.data_name}'s, or another checkpoint.",
        )
    if len(dataset.labels) != masks:
        raise found_expected(
            "--labels",
            f"{len(dataset.labels)} labels ({', '.join(dataset.labels)})",
            f"{masks}, with which the network was trained",
            "Name the labels of the training.",
        )
    if dataset.normalisation != config.normalisation:
        raise found_expected(
            "--data_dir",
            f"intensities scaled as {dataset.normalisation!r}",
            f"{config.normalisation!r}, as in training",
            "Use the --data_name of the training.",
        )
    if batch_size < 1:
        raise found_expected("--batch_size", batch_size, "at least 1", "Use 1.")


@dataclass(frozen=True)
class SamplingRun:
    """One process' sampling of a dataset's cases into a folder.

    dataset:    `Dataset`. out_dir: folder of the masks.
    batch_size: examples per batch; each brings its whole ensemble. Every batch has this size, or that of
                the dataset: the last one is filled up by its own examples, so that a mask is the same to
                the bit, whichever process samples it.
    threshold:  probability from which on a pixel belongs to the mask.
    settings:   the resolved configuration, JSON values by name, for the report and for the comparison with
                what the folder holds.
    fusion:     one of `config.FUSIONS`.
    part_id, num_parts: sample one part of the cases (`folder.part_of`).
    resume:     leave out the cases whose masks are there.
    group:      the processes that share the cases (`dist_util.setup_dist`), None for this one by itself; the first
                one writes the report, with the seconds and the memory of the process that took most.
    """

    dataset: object
    out_dir: object
    batch_size: int
    threshold: float
    settings: dict
    fusion: str = "mean"
    part_id: int = 0
    num_parts: int = 1
    resume: bool = False
    group: object = None

    def run(self, sampler):
        """Sample the cases, and write each one's files as soon as all its examples are done.

        sampler: function of (images (N, C, S, S), keys) that returns (members, N, K, S, S).
        Raises `UserError` for a folder with masks of other settings. KeyboardInterrupt and a kill leave whole
        files, from which `resume` goes on; what a killed process has left half written is removed.
        """
        group = self.group or Alone()
        plan = self._plan(group)
        if group.rank == 0:
            self._begin(plan, group)
        try:
            seconds = self._sample(sampler, plan, shown=group.rank == 0)
        except KeyboardInterrupt:
            tqdm.write(
                "Stopped; the masks so far are whole. The same command with --continue goes on.", file=sys.stderr
            )
            raise
        slowest = group.gather([seconds, peak_memory_mib()]).max(0)
        if group.rank == 0:
            self._end(plan, *map(float, slowest))

    def _plan(self, group):
        """Return the `_Plan` of this process, once the folder is seen to be of this run."""
        cases = self.dataset.cases()
        chosen = part_of(cases, self.part_id, self.num_parts)[group.rank :: group.size]
        writer = CaseWriter(self.out_dir, self.dataset.labels)
        writer.require_unique_names(cases)
        require_same_run(writer, cases, self.settings)
        clear_unfinished(self.out_dir)
        left = [case for case in chosen if not (self.resume and writer.is_complete(case))]
        own = [sum(len(case.indices) for case in left), len(left), len(chosen)]
        # sums over the processes, all of which have seen the folder once they are here
        images, to_do, count = map(int, group.gather(own).sum(0))
        size = min(self.batch_size, sum(len(case.indices) for case in cases))
        return _Plan(writer, _batches(chosen, left, size), size, images, to_do, count)

    def _report(self, plan):
        """Return what the report of this part says from the start."""
        return {
            **self.settings,
            "part_id": self.part_id,
            "num_parts": self.num_parts,
            "labels": list(self.dataset.labels),
            "definitions": DEFINITIONS[self.fusion],
            "cases": plan.count,
            "cases_found_finished": plan.count - plan.to_do,
            "finished": False,
        }

    def _begin(self, plan, group):
        """Write the report and a line on the terminal."""
        write_report(report_path(self.out_dir, self.part_id, self.num_parts), self._report(plan))
        finished = plan.count - plan.to_do
        found = f", {finished} are finished" if finished else ""
        shared = f", in {group.size} processes" if group.size > 1 else ""
        tqdm.write(
            f"sampling {plan.images} images of {plan.to_do} cases{found}{shared}; masks go to {self.out_dir}",
            file=sys.stderr,
        )

    def _end(self, plan, seconds, memory):
        """Write the finished report and a line on the terminal."""
        report = {**self._report(plan), "finished": True, "sampler_seconds": seconds, "memory_mib": memory}
        write_report(report_path(self.out_dir, self.part_id, self.num_parts), report)
        tqdm.write(f"sampled {plan.to_do} cases in {seconds:.1f} s of network time", file=sys.stderr)

    def _sample(self, sampler, plan, shown):
        """Sample the batches and write each case that they complete; return the seconds of the sampler.

        shown: show a progress bar.
        """
        done = {}  # name -> [(probability, uncertainty, picture) of each example so far]
        seconds = 0.0
        total = sum(map(len, plan.batches))
        with tqdm(total=total, unit="image", desc="sampling", dynamic_ncols=True, disable=not shown) as bar:
            for batch in plan.batches:
                examples = [self.dataset[index] for _, index in batch]
                began = time.perf_counter()
                members = sample_batch(sampler, examples, plan.size)
                seconds += time.perf_counter() - began
                probability, uncertainty = fuse(members, self.fusion)
                for (case, _), example, *fused in zip(batch, examples, probability, uncertainty):
                    parts = done.setdefault(case.name, [])
                    parts.append((*fused, as_picture(example.image)))
                    if len(parts) == len(case.indices):
                        probabilities, uncertainties, pictures = map(np.stack, zip(*done.pop(case.name)))
                        plan.writer.write(case, probabilities, uncertainties, self.threshold, pictures)
                bar.update(len(batch))
        return seconds


@dataclass(frozen=True)
class _Plan:
    """What a process samples: batches of (case, index) of `size` examples; the numbers are of all processes.

    images, to_do: images and cases that are left. count: cases in all.
    """

    writer: CaseWriter
    batches: list
    size: int
    images: int
    to_do: int
    count: int


def _batches(chosen, left, size):
    """Return the chosen cases' (case, index) in batches, without the batches that hold no case that is left.

    A batch stays whole, since what it holds must not depend on what is finished.
    """
    queue = [(case, index) for case in chosen for index in case.indices]
    names = {case.name for case in left}
    batches = (queue[start : start + size] for start in range(0, len(queue), size))
    return [batch for batch in batches if any(case.name in names for case, _ in batch)]


def _require_finite(members, keys):
    """Refuse masks (M, N, ...) with NaN or infinity, which no file may hold; `UserError` names the first example."""
    broken = ~np.isfinite(members).all(axis=(0, *range(2, members.ndim)))  # (N,)
    if broken.any():
        raise found_expected(
            f"sampling of {keys[int(np.argmax(broken))]}",
            "values that are no numbers in the mask",
            "finite ones",
            "Sample by DDIM (--sampler ddim), whose steps the learned variance "
            "does not spoil, or in more --sample_steps; else train on.",
        )


def sample_batch(sampler, examples, size):
    """Sample the masks of N examples in a batch of a fixed size, which the examples fill again from the first one.

    sampler: as in `SamplingRun.run`. examples: list of `Example`, at most `size`.
    Returns (members, N, K, S, S). Raises `UserError` for values that are not finite.
    """
    filled = [examples[row % len(examples)] for row in range(size)]
    keys = [example.noise_key for example in filled]
    members = sampler(np.stack([example.image for example in filled]), keys)
    _require_finite(members, keys)
    return members[:, : len(examples)]

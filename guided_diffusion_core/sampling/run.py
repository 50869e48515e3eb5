"""Run a sampling: the configuration, batches of examples, progress and files.

The sampler itself (`Method.sampler`) turns images into masks; nothing here depends on a framework.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import PRESETS, ComputeConfig, DataConfig, setting, setting_names
from guided_diffusion_core.data.formats.labels import split_names
from guided_diffusion_core.errors import MAX_NAMES, UserError, found_expected, join_names
from guided_diffusion_core.results.display import as_picture
from guided_diffusion_core.results.fusion import DEFINITIONS, fuse
from guided_diffusion_core.results.outputs import CaseWriter, require_names
from guided_diffusion_core.sampling.batches import batches_of, sample_batch
from guided_diffusion_core.sampling.folder import part_of, report_path, require_same_run, write_report
from guided_diffusion_core.system.files import clear_unfinished
from guided_diffusion_core.system.locks import locked_folder
from guided_diffusion_core.system.process_memory import memory_figures
from guided_diffusion_core.system.processes import Alone
from guided_diffusion_core.system.progress import LateProgress
from guided_diffusion_core.system.room import continued_by, memory_limit, size_text


def sampling_config(path, given, preset=None):
    """Return the configuration of a checkpoint with the settings of the command line for data and sampling.

    path:   safetensors file of the checkpoint.
    given:  settings on the command line, by name.
    preset: name of a preset or None; its settings count as given.
    Raises `UserError` if a given setting of the network or the diffusion contradicts the checkpoint.
    """
    trained = checkpoints.read_config(path)
    preset_values = PRESETS[preset] if preset else {}
    _require_as_trained(trained, path, given, preset_values)
    # The training's slices, data, precision and device do not carry over. Everything else does unless it is given.
    config = dataclasses.replace(trained, compute=ComputeConfig()).replace(slices=DataConfig.slices, data_dir="")
    used = {"seed", *setting_names("data", "sampling", "compute")}
    for layer in (preset_values, given):
        config = config.replace(**{name: value for name, value in layer.items() if name in used})
    return config


def _require_as_trained(trained, path, given, preset_values):
    """Refuse settings of the network, the diffusion and the labels that differ from the training's; `UserError`.

    trained: `Config` of the checkpoint `path`. given, preset_values: settings by name.
    """
    free = {"seed", *setting_names("data", "training", "sampling", "compute")}
    known = setting_names("model", "diffusion", model=trained.model)
    advice = "Leave the flag out: the checkpoint decides."
    for name, value in {**preset_values, **given}.items():
        # A preset may have settings of another network, which do not matter here. A flag for another network does.
        if name in free or (name not in given and name not in known):
            continue
        expected = setting(trained, name)
        if value != expected:
            raise found_expected(f"--{name}", value, f"{expected!r}, with which {path} was trained", advice)
    labels = trained.data.labels
    if "labels" in given and labels and split_names(given["labels"]) != split_names(labels):
        raise found_expected("--labels", repr(given["labels"]), f"{labels!r}, with which {path} was trained", advice)


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


def check_ensemble(dataset, config, batch_size):
    """Refuse an ensemble of which the network's inputs and outputs alone exceed the memory; `UserError`."""
    members = config.sampling.num_ensemble
    batch_size = min(batch_size, len(dataset))
    values = batch_size * members * (config.model.in_ch + config.model.out_channels) * config.model.image_size**2
    needed = 4 * values  # bytes of float32
    limit = memory_limit()
    if needed > limit:
        raise found_expected(
            "--num_ensemble",
            f"{members:,} samples of {batch_size:,} images at once, which need {size_text(needed)} at the least",
            f"at most {size_text(limit)}, the memory of this machine",
            "Give a smaller --num_ensemble or --batch_size.",
        )


@dataclass(frozen=True)
class SamplingRun:
    """The sampling of a dataset's cases into a folder by one process.

    dataset:    `Dataset`.
    out_dir:    folder of the masks.
    batch_size: examples per batch, each with its whole ensemble. All batches have this size, or the size of the dataset
                if that is smaller: the examples of the last batch are repeated until it is full. Therefore a mask is
                the same to the bit, whichever process samples it.
    threshold:  lowest probability of a pixel that belongs to the mask.
    settings:   the resolved configuration, JSON values by name. The report holds it, and it is compared with the
                reports that are in the folder already.
    fusion:     one of `config.FUSIONS`.
    part_id, num_parts: sample one part of the cases (`folder.part_of`).
    resume:     leave out the cases whose masks are in the folder already.
    group:      the processes that share the cases (`dist_util.setup_dist`), or None for only this process. The first
                one writes the report, with the highest time and memory of all processes.
    device:     the one that computes, in words, for the report.
    gpu_memory_mib: function that returns the largest memory of the GPU, for the report; None on a CPU
                    (`runtime.gpu_memory_mib`).
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
    device: str = "cpu"
    gpu_memory_mib: Callable[[], float | None] = lambda: None

    def run(self, sampler):
        """Sample the cases, and write the files of a case as soon as all its examples are done.

        sampler: function of (images (N, C, S, S), keys) that returns (members, N, K, S, S).
        A case whose files cannot be read is left out, and named in one `UserError` after the others are sampled.
        Raises `UserError` for a folder with masks of other settings. After Ctrl-C or a kill all files in the folder
        are whole, and `resume` continues from them; incomplete temporary files are removed at the next start.
        """
        group = self.group or Alone()
        # The first process holds the folder for all of them. Parts share the folder, so they share its lock.
        lock = locked_folder(self.out_dir, "a sampling", shared=self.num_parts > 1) if not group.rank else nullcontext()
        with lock, continued_by(lambda: "go on with --continue"):
            self._run(sampler, group)

    def _run(self, sampler, group):
        plan = self._plan(group)
        if group.rank == 0:
            self._begin(plan, group)
        try:
            seconds, failed = self._sample(sampler, plan, shown=group.rank == 0)
        except KeyboardInterrupt:
            tqdm.write(
                "Stopped; the masks so far are whole. The same command with --continue goes on.", file=sys.stderr
            )
            raise
        figures = {"sampler_seconds": seconds, **memory_figures(self.gpu_memory_mib())}
        highest = group.gather(list(figures.values())).max(0)  # over the processes
        failures = int(group.gather([len(failed)]).sum())
        if group.rank == 0:
            self._end(plan, dict(zip(figures, map(float, highest))), failures)
        if failed:
            raise _left_out(failed, plan.to_do, self.out_dir)

    def _plan(self, group):
        """Check that the folder is new or belongs to this run, and return the `_Plan` of this process."""
        cases = self.dataset.cases()
        part = part_of(cases, self.part_id, self.num_parts)
        chosen = part[group.rank :: group.size]
        writer = CaseWriter(self.out_dir, self.dataset.labels)
        require_names(self.out_dir, cases, self.dataset.labels)
        require_same_run(writer, cases, self.settings)
        clear_unfinished(self.out_dir)
        left = [case for case in chosen if not (self.resume and writer.is_complete(case))]
        counts = [sum(len(case.indices) for case in left), len(left), len(chosen)]
        # Sums over the processes. Gathering also waits for all of them: no process may write a report or a mask before
        # the others have looked at the folder.
        images, to_do, count = map(int, group.gather(counts).sum(0))
        size = min(self.batch_size, sum(len(case.indices) for case in cases))
        return _Plan(writer, batches_of(chosen, left, size), size, images, to_do, count)

    def _report(self, plan):
        """Return the report of this part at the start of the run."""
        return {
            **self.settings,
            "part_id": self.part_id,
            "num_parts": self.num_parts,
            "device": self.device,
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

    def _end(self, plan, figures, failures):
        """Write the finished report and a line on the terminal.

        figures: time and memory by name. failures: number of cases that were left out.
        """
        report = {**self._report(plan), "finished": not failures, "cases_left_out": failures, **figures}
        write_report(report_path(self.out_dir, self.part_id, self.num_parts), report)
        seconds = figures["sampler_seconds"]
        tqdm.write(f"sampled {plan.to_do - failures} cases in {seconds:.1f} s of network time", file=sys.stderr)

    def _sample(self, sampler, plan, shown):
        """Sample the batches and write each case that they complete.

        shown: show a progress bar.
        Returns (seconds of the sampler, dict of case name -> `UserError` of the cases that cannot be read).
        """
        failed = {}
        done = {}  # name -> [(probability, uncertainty, picture) of each example so far]
        seconds = 0.0
        total = sum(map(len, plan.batches))
        with LateProgress(total=total, unit="image", desc="sampling", disable=not shown) as bar:
            for batch in plan.batches:
                readable, examples = self._read(batch, failed)
                bar.update(len(batch) - len(readable))
                if not readable:
                    continue
                # the time of the network alone, without reading and writing files
                began = time.perf_counter()
                members = sample_batch(sampler, examples, plan.size)
                seconds += time.perf_counter() - began
                probability, uncertainty = fuse(members, self.fusion)
                for (case, _), example, *fused in zip(readable, examples, probability, uncertainty):
                    parts = done.setdefault(case.name, [])
                    parts.append((*fused, as_picture(example.image)))
                    if len(parts) == len(case.indices):  # the case is complete
                        probabilities, uncertainties, pictures = map(np.stack, zip(*done.pop(case.name)))
                        plan.writer.write(case, probabilities, uncertainties, self.threshold, pictures)
                bar.update(len(readable))
        return seconds, failed

    def _read(self, batch, failed):
        """Return (the part of a batch that can be read, its examples), and add the other cases to `failed`."""
        readable = []
        examples = []
        for case, index in batch:
            if case.name in failed:
                continue
            try:
                examples.append(self.dataset[index])
                readable.append((case, index))
            except UserError as error:
                failed[case.name] = error
        return readable, examples


@dataclass(frozen=True)
class _Plan:
    """The work of one process, and the numbers of all processes together.

    writer:  `CaseWriter` of the folder.
    batches: lists of (case, index of an example), at most `size` long.
    size:    number of examples in a batch of the sampler.
    images:  images to sample, in all processes.
    to_do:   cases to sample, in all processes.
    count:   cases of this part, including those that are finished.
    """

    writer: CaseWriter
    batches: list
    size: int
    images: int
    to_do: int
    count: int


def _left_out(failed, cases, out_dir):
    """Return the `UserError` of the cases that could not be read. failed: as in `_sample`; cases: number of all."""
    errors = list(failed.values())
    if cases == 1:
        return errors[0]
    lines = [str(error) for error in errors[:MAX_NAMES]]
    if len(errors) > MAX_NAMES:
        lines.append(f"and {len(errors) - MAX_NAMES} more")
    lines.append(
        f"{len(errors)} of {cases} cases were left out ({join_names(failed)}); the masks of the others are in "
        f"{out_dir}. Mend the files, then the same command with --continue samples the rest."
    )
    return UserError("\n".join(lines))

"""What surrounds a backend's ensemble sampler: batches over cases, progress, files.

The sampler itself (`sample_util.EnsembleSampler`) turns images into masks; nothing here depends
on a framework.
"""

import json
import sys
import time

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
    """The configuration of a checkpoint with what the command line gives for data and sampling.

    path: safetensors file of the checkpoint. given: settings on the command line, by name.
    preset: a preset's name or None; it counts as if its settings had been given.
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


def run_sampling(
    sampler,
    dataset,
    out_dir,
    batch_size,
    threshold,
    summary,
    fusion="mean",
    part_id=0,
    num_parts=1,
    resume=False,
    group=Alone(),
):
    """Sample the cases of a dataset and write each one's files as soon as all its examples are done.

    sampler:    function of (images (N, C, S, S), keys) that returns (members, N, K, S, S).
    batch_size: examples per batch; each brings its whole ensemble. Every batch has this size, or that of
                the dataset: the last one is filled up by its own examples, so that a mask is the same to
                the bit, whichever process samples it.
    threshold:  probability from which on a pixel belongs to the mask.
    summary:    the resolved configuration, a JSON text. It is written to the part's report at the start,
                and at the end with the seconds that the network took and the peak memory.
    fusion:     one of `config.FUSIONS`.
    part_id, num_parts: sample one part of the cases (`sampling_folder.part_of`).
    resume:     leave out the cases whose masks are there.
    group:      the processes that share the cases among them (`dist_util.setup_dist`); the first one writes the
                report, with the seconds and the memory of the process that took most.
    Raises `UserError` for a folder with masks of other settings. KeyboardInterrupt and a kill leave whole
    files, from which `resume` goes on; what a killed process has left half written is removed.
    """
    cases = dataset.cases()
    settings = json.loads(summary)
    chosen = part_of(cases, part_id, num_parts)[group.rank :: group.size]
    writer = CaseWriter(out_dir, dataset.labels)
    writer.require_unique_names(cases)
    require_same_run(writer, cases, settings)
    clear_unfinished(out_dir)
    left = [case for case in chosen if not (resume and writer.is_complete(case))]
    images, to_do, count = map(
        int, group.gather([sum(len(case.indices) for case in left), len(left), len(chosen)]).sum(0)
    )  # all have seen the folder now
    report = {
        **settings,
        "part_id": part_id,
        "num_parts": num_parts,
        "labels": list(dataset.labels),
        "definitions": DEFINITIONS[fusion],
        "cases": count,
        "cases_found_finished": count - to_do,
        "finished": False,
    }
    path = report_path(out_dir, part_id, num_parts)
    first = group.rank == 0
    if first:
        write_report(path, report)
        tqdm.write(
            f"sampling {images} images of {to_do} cases"
            f"{f', {count - to_do} are finished' if to_do < count else ''}"
            f"{f', in {group.size} processes' if group.size > 1 else ''}; masks go to {out_dir}",
            file=sys.stderr,
        )
    size = min(batch_size, sum(len(case.indices) for case in cases))
    try:
        seconds = _sample_cases(
            sampler,
            dataset,
            _batches(chosen, left, size),
            size,
            lambda members: fuse(members, fusion),
            lambda case, *fused: writer.write(case, *fused[:2], threshold, fused[2]),
            first,
        )
    except KeyboardInterrupt:
        tqdm.write("Stopped; the masks so far are whole. The same command with --continue goes on.", file=sys.stderr)
        raise
    seconds, memory = map(float, group.gather([seconds, peak_memory_mib()]).max(0))
    if first:
        write_report(path, {**report, "finished": True, "sampler_seconds": seconds, "memory_mib": memory})
        tqdm.write(f"sampled {to_do} cases in {seconds:.1f} s of network time", file=sys.stderr)


def _batches(chosen, left, size):
    """The (case, index) of the chosen cases in batches; of these the ones that hold some case that is left,
    whole, since a batch must not depend on what is finished."""
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

    sampler: as in `run_sampling`. examples: list of `Example`, at most `size`.
    Returns (members, N, K, S, S). Raises `UserError` for values that are not finite.
    """
    filled = [examples[row % len(examples)] for row in range(size)]
    keys = [example.noise_key for example in filled]
    members = sampler(np.stack([example.image for example in filled]), keys)
    _require_finite(members, keys)
    return members[:, : len(examples)]


def _sample_cases(sampler, dataset, batches, size, fuse_members, write, shown=True):
    """Sample batches and write(case, probability, uncertainty, pictures) each case that they complete.
    shown: whether there is a progress bar. Returns the seconds of the sampler."""
    done = {}
    seconds = 0.0
    with tqdm(
        total=sum(map(len, batches)), unit="image", desc="sampling", dynamic_ncols=True, disable=not shown
    ) as bar:
        for batch in batches:
            examples = [dataset[index] for _, index in batch]
            began = time.perf_counter()
            members = sample_batch(sampler, examples, size)
            seconds += time.perf_counter() - began
            probability, uncertainty = fuse_members(members)
            for (case, _), example, *fused in zip(batch, examples, probability, uncertainty):
                parts = done.setdefault(case.name, [])
                parts.append((*fused, as_picture(example.image)))
                if len(parts) == len(case.indices):
                    write(case, *map(np.stack, zip(*done.pop(case.name))))
            bar.update(len(batch))
    return seconds

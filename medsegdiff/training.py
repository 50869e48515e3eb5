"""Training, for the command and from Python."""

import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from os import PathLike
from typing import Any

from guided_diffusion_core import checkpoints, command_line, training
from guided_diffusion_core.backends import backend_module, start_backend
from guided_diffusion_core.config import all_setting_names, resolve
from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.data.dataset import say_remarks
from guided_diffusion_core.data.guess import data_name_of
from guided_diffusion_core.data.walk import saying_left_out
from guided_diffusion_core.errors import join_names
from guided_diffusion_core.system import processes
from guided_diffusion_core.system.files import require_local
from guided_diffusion_core.training.validation import open_validation
from medsegdiff.model import Model, choose_backend, load


def train(
    data_dir: str | PathLike,
    out_dir: str | PathLike,
    *,
    backend: str | None = None,
    preset: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int | None = None,
    resume: str = "",
    overwrite: bool = False,
    **settings: Any,
) -> Model:
    """Train a network, as `medsegdiff train` does, and return it.

    data_dir:  the training data, in the layout data_name; without it, in the layout that the folder shows.
    out_dir:   the run's folder, for the log, the configuration and the checkpoints; `load` takes it.
    backend:   "pytorch" or "jittor"; None takes the first one that is installed.
    preset:    a named set of values, such as "fast"; the settings override it.
    device:    "auto", which takes a GPU if one works; "cpu", "cuda", "cuda:N" or "mps".
    threads:   how many compute; None leaves that to the framework.
    seed:      of every random number; None takes 0, or that of the training that `resume` goes on with.
    resume:    "last" goes on from the last checkpoint of out_dir.
    overwrite: remove the training that out_dir holds; otherwise such a folder is refused.
    settings:  by the names of the flags of `medsegdiff train`, such as data_name="IMAGES", image_size=64, lr=1e-3,
               max_steps=300; init_from="run" starts with the weights of another training.
    Raises `UserError` as `medsegdiff train` does, TypeError for an unknown setting.
    """
    backend = choose_backend(backend)
    known = all_setting_names()
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise TypeError(f"unknown settings: {join_names(unknown)}; known are {', '.join(sorted(known))}")
    given = {**settings, "data_dir": data_dir, "device": device}
    given = {name: str(value) if isinstance(value, PathLike) else value for name, value in given.items()}
    if seed is not None:
        given["seed"] = seed
    run(backend, str(out_dir), given, preset, str(resume), overwrite, threads=threads, show=False)
    return load(out_dir, backend, device, threads)


def run(backend, out_dir, given, preset=None, resume="", overwrite=False, dry_run=False, threads=None, show=True):
    """Train, or go on with a training.

    out_dir: None takes `training.default_folder`.
    given:   dict of the settings that the user gave.
    dry_run: stop before the training. show: print the resolved configuration and the device.
    The other arguments are those of `train`.
    """
    out_dir = out_dir or training.default_folder(given.get("data_dir", ""), resume)
    require_local(out_dir, "--out_dir")
    found = processes.launched_for(backend)
    step = 0
    networks = None
    validated = None
    if resume:
        step, config, networks, validated = training.resumed_config(resume, out_dir, given, found.size)
    else:
        config = resolve(given, preset=preset).replace(processes=found.size)
    first = found.rank == 0
    start = checkpoints.resume_folder(resume, out_dir) if resume else None
    folder = training.RunFolder(out_dir, start, overwrite, validates=bool(config.training.val_dir))
    if first:
        folder.require_free()
    if config.training.tensorboard:
        training.require_tensorboard()
    record = {}
    if not dry_run:
        # before the data: a device that is not there is refused at once
        runtime = start_backend(backend, show and first, threads=threads, **asdict(config.compute))
        record["device"] = str(runtime.current.device)
    if not resume:
        config = config.replace(data_name=data_name_of(given))
    with saying_left_out():
        dataset = open_dataset(config.data, config.model.image_size, "Training", need_masks=True)
        config = training.fit_to_data(
            config, dataset, in_ch_given="in_ch" in given, mask_channels_given="mask_channels" in given
        )
        say_remarks(dataset)
        dataset, cases = training.split_sets(config, dataset)
    validation = open_validation(config, out_dir, training.last_step(config.training), validated, cases)
    folder = replace(folder, validates=validation is not None)
    initial = None if resume else training.initial_weights(config)
    kept = training.read_config_file(folder.origin()).get("initial_weights")
    if initial or kept:
        record["initial_weights"] = initial.record() if initial else kept
    summary = command_line.configuration_text(config, backend=backend, out_dir=out_dir, examples=len(dataset), **record)
    if show and first:
        print(summary)
    if initial and first:
        print("\n".join(initial.lines()), file=sys.stderr)
    # The first process holds the folder for all of them.
    with folder.held() if first and not dry_run else nullcontext():
        if first:
            device = config.compute.device if dry_run else runtime.current.device
            training.say_needs(folder, config, len(dataset), step, device)
        if dry_run:
            return
        group = backend_module(backend, "dist_util").setup_dist()
        create_train_loop = backend_module(backend, "train_util").create_train_loop
        loop = create_train_loop(config, dataset, step, networks, initial and initial.arrays)
        networks = None  # the loop has its own copies of these arrays
        initial = None
        if first:
            folder.prepare(summary)
            if cases:
                training.write_split(out_dir, dataset, cases)
        training.run_training(loop, config, out_dir, validation, training.seconds_so_far(folder, step))
        group.close()

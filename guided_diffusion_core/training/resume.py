"""The continuation of an interrupted training: its checkpoint, and the settings that may change."""

import sys

from tqdm import tqdm

from guided_diffusion_core import checkpoints
from guided_diffusion_core.config import ComputeConfig, last_name, path_settings, setting
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.processes import launched, shared_batch
from guided_diffusion_core.training.folder import CONFIG, read_config_file
from guided_diffusion_core.training.rates import last_step

# Settings that a resumed run may change: its length, its files, the device and whether it recomputes activations, but
# nothing that it computes.
FREE_ON_RESUME = (
    "device",
    "use_checkpoint",
    "max_steps",
    "log_interval",
    "save_interval",
    "keep_checkpoints",
    "num_workers",
    "tensorboard",
    "data_dir",
    "val_dir",
    "val_interval",
    "val_slices",
    "val_cases",
    "val_steps",
)


def resumed_config(resume, out_dir, given, processes=1):
    """Return the state from which `--resume` continues: (step, `Config`, networks, validation).

    resume, out_dir: as `checkpoints.find_whole` takes them.
    given:           settings on the command line, by name. Only those of `FREE_ON_RESUME` may differ from the
                     checkpoint.
    processes:       number of processes that continue. If it has changed, each takes its share of the same batches.

    validation is the `Validation.state` of the checkpoint, or None if the validation has other settings now. Raises
    `UserError` if another setting differs, or if the run has reached its end.
    """
    if given.get("init_from"):
        raise found_expected(
            "--init_from",
            f"given with --resume {resume}",
            "one of the two: a training that goes on has its weights",
            "Leave one of them out.",
        )
    folder = checkpoints.find_whole(resume, out_dir)
    step, config, networks = checkpoints.load_all(folder)
    # batch_size and microbatch change with the number of processes, before they are compared with the flags
    config = _shared(config, processes)
    trained = {name: setting(config, name) for name in given}
    for name, value in given.items():
        if name not in FREE_ON_RESUME and value != trained[name]:
            raise found_expected(
                f"--{name}",
                value,
                f"{trained[name]!r}, with which {folder} was trained",
                "Leave the flag out: the checkpoint decides.",
            )
    config = _with_paths(config, folder, given)
    # The device of the training so far may be another machine's.
    free = {"device": ComputeConfig.device, **given}
    config = config.replace(**{name: value for name, value in free.items() if name in FREE_ON_RESUME})
    if step >= last_step(config.training):
        raise found_expected(
            f"--resume {resume}",
            f"a checkpoint of step {step}, where this training ends",
            "one from before its end",
            "Give a larger --max_steps, or an earlier checkpoint.",
        )
    # The Dice of other slices, cases or steps cannot be compared with the best one so far, which is forgotten.
    compared = ("val_slices", "val_cases", "val_steps")
    if any(name in given and given[name] != trained[name] for name in compared):
        return step, config, networks, None
    return step, config, networks, checkpoints.load_validation(folder)


def _with_paths(config, folder, given):
    """Return the configuration with the paths of its run, of which a checkpoint holds only the last parts.

    folder: the checkpoint; the `config.json` of its run has the paths.
    given:  settings on the command line, by name, which need no path.
    Raises `UserError` for a path that is not there either.
    """
    written = read_config_file(folder.parent.parent)
    found = {}
    for name, section in path_settings().items():
        value = setting(config, name)
        # older versions wrote whole paths
        if name in given or value != last_name(value):
            continue
        path = written.get(section, {}).get(name, "")
        if value and (not isinstance(path, str) or last_name(path) != value):
            if name == "init_from":  # which is not read again
                continue
            raise found_expected(
                f"--{name}",
                f"only the name {value!r} in {folder}, which holds no paths so that it can be shared",
                f"the path in the {CONFIG} of its run, or the flag",
                f"Give --{name}.",
            )
        found[name] = path if value else ""
    return config.replace(**found)


def _shared(config, processes):
    """Return the configuration for another number of processes, with the same batches in all."""
    if processes == config.processes:
        return config
    shares = {
        name: shared_batch(count, config.processes, processes)
        for name in ("batch_size", "microbatch")
        if (count := getattr(config.training, name)) > 0  # microbatch -1 stays: it means batch_size
    }
    for name, share in shares.items():
        if share is None:
            whole = getattr(config.training, name) * config.processes
            raise found_expected(
                "--resume",
                f"{processes} processes",
                f"a number that divides the --{name} of the whole training, {whole}",
                f"Start {config.processes}, as before.",
            )
    if launched().rank == 0:
        listed = ", ".join(f"--{name} {share}" for name, share in shares.items())
        tqdm.write(
            f"trained by {config.processes} processes so far; the same batches by {processes}: {listed}",
            file=sys.stderr,
        )
    return config.replace(processes=processes, **shares)

"""What surrounds a backend's training loop: log, progress bar, checkpoints, Ctrl-C.

The loop itself (`train_util.TrainLoop`) computes and yields; nothing here depends on a framework.
"""
import contextlib
import math
import os
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

from tqdm import tqdm

from guided_diffusion_core import checkpoint
from guided_diffusion_core.config import setting_names
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.files import make_writable_folder, write_atomic
from guided_diffusion_core.processes import TORCHRUN, any_process, launched, shared_batch
from guided_diffusion_core.runlog import RunLog
from guided_diffusion_core.unet_plan import make_plan


def fit_to_data(config, dataset, in_ch_given, mask_channels_given=False):
    """The configuration with the dataset's channels and normalisation, checked for training.

    in_ch_given, mask_channels_given: whether `--in_ch` and `--mask_channels` stand on the command line;
    they then must fit the data.
    Raises `UserError` for a network or a batch that cannot be trained.
    """
    masks = len(dataset.labels)
    channels = dataset.in_channels + masks
    if mask_channels_given and config.model.mask_channels != masks:
        raise found_expected("--mask_channels", config.model.mask_channels,
                             f"{masks} for this data, whose labels are {', '.join(dataset.labels)}",
                             "Leave the flag out.")
    if in_ch_given and config.model.in_ch != channels:
        raise found_expected("--in_ch", config.model.in_ch, f"{channels} for this data, its {dataset.in_channels} "
                             f"image channels and {masks} of the mask", "Leave the flag out.")
    if config.model.class_cond:
        raise found_expected("--class_cond", True, "False, because these datasets have no class labels",
                             "Leave the flag out.")
    # the names of several masks, since data to sample need not say them; of one they stay as given
    labels = ",".join(dataset.labels) if masks > 1 else config.data.labels
    config = config.replace(in_ch=channels, mask_channels=masks, labels=labels, normalisation=dataset.normalisation)
    plan = make_plan(config.model)
    microbatch = config.training.microbatch if config.training.microbatch > 0 else config.training.batch_size
    smallest = config.training.batch_size % microbatch or microbatch
    if plan.image_size == 2 ** plan.highway.poolings and smallest * config.processes == 1:
        raise found_expected("--batch_size", f"a forward pass of one example at {config.model.image_size} pixels",
                             "two or more, because batch norm sees one value per channel there",
                             "Give a larger --batch_size or --microbatch.")
    return config


# Settings that a resumed run may change: how far it goes and what it leaves behind, not what it computes.
FREE_ON_RESUME = ("max_steps", "log_interval", "save_interval", "keep_checkpoints", "num_workers", "data_dir",
                  "val_dir", "val_interval", "val_slices", "val_cases", "val_steps")


def resumed_config(resume, out_dir, given, processes=1):
    """What `--resume` goes on with: (step, `Config`, networks) of `checkpoint.load_all`, and what
    `Validation.state` was then, or None.

    resume, out_dir: as of `checkpoint.find_whole`. given: settings on the command line, by name; of them
    only `FREE_ON_RESUME` may differ from the checkpoint's; what was validated otherwise is forgotten.
    processes: how many go on; where there were more or fewer, each takes its share of the same batches.
    Raises `UserError` if another one does, or the run has reached its end.
    """
    folder = checkpoint.find_whole(resume, out_dir)
    step, config, networks = checkpoint.load_all(folder)
    config = _shared(config, processes)
    trained = {"seed": config.seed, **{name: getattr(getattr(config, section), name)
                                       for name, section in setting_names().items()}}
    for name, value in given.items():
        if name not in FREE_ON_RESUME and value != trained[name]:
            raise found_expected(f"--{name}", value, f"{trained[name]!r}, with which {folder} was trained",
                                 "Leave the flag out: the checkpoint decides.")
    config = config.replace(**{name: value for name, value in given.items() if name in FREE_ON_RESUME})
    if step >= last_step(config.training):
        raise found_expected(f"--resume {resume}", f"a checkpoint of step {step}, where this training ends",
                             "one from before its end", "Give a larger --max_steps, or an earlier checkpoint.")
    otherwise = any(name in given and given[name] != trained[name] for name in ("val_slices", "val_cases", "val_steps"))
    return step, config, networks, None if otherwise else checkpoint.load_validation(folder)


def _shared(config, processes):
    """The configuration of a training that another number of processes goes on with, its batches being the same."""
    if processes == config.processes:
        return config
    shares = {name: shared_batch(count, config.processes, processes) for name in ("batch_size", "microbatch")
              if (count := getattr(config.training, name)) > 0}
    for name, share in shares.items():
        if share is None:
            whole = getattr(config.training, name) * config.processes
            raise found_expected("--resume", f"{processes} processes", f"a number that divides the --{name} of the "
                                 f"whole training, {whole}", f"Start {config.processes}, as before.")
    if launched().rank == 0:
        listed = ", ".join(f"--{name} {share}" for name, share in shares.items())
        tqdm.write(f"trained by {config.processes} processes so far; the same batches by {processes}: {listed}",
                   file=sys.stderr)
    return config.replace(processes=processes, **shares)


def prepare_run(out_dir, summary):
    """Make the run's folder and write the resolved configuration, a JSON text, to its `config.json`."""
    make_writable_folder(out_dir, "--out_dir")
    write_atomic(Path(out_dir) / "config.json", (summary + "\n").encode())


def last_step(training):
    """The number of steps after which training ends: `max_steps`, or sooner the end of annealing."""
    return min(training.max_steps, training.lr_anneal_steps or training.max_steps)


def learning_rate(lr, lr_anneal_steps, step, schedule="linear", cycles=1):
    """The rate of the optimizer step number `step` (from 0).

    lr_anneal_steps: steps over which it falls from lr to zero; 0: it stays.
    schedule: "linear"; "cosine", half a period (SGDR: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5);
              "cosine-restarts", as many of these as `cycles`, each of lr_anneal_steps / cycles steps; "constant".
    """
    if schedule == "constant" or not lr_anneal_steps:
        return lr
    share = step / lr_anneal_steps
    if schedule == "linear":
        return lr * (1 - share)
    if schedule == "cosine-restarts":
        share = step * cycles % lr_anneal_steps / lr_anneal_steps
    return lr * 0.5 * (1 + math.cos(math.pi * share))


def ema_rate_at(rate, step, warmup):
    """The rate of the moving average at step number `step` (from 0).

    With `warmup`, min(rate, (1 + n) / (10 + n)), so that the average of a short training is not
    its random start (as in TensorFlow's ExponentialMovingAverage with `num_updates`).
    """
    return min(rate, (1 + step) / (10 + step)) if warmup else rate


def peak_memory_mib():
    """Largest memory that this process has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def stop_requested():
    """Yield a function that tells whether Ctrl-C was pressed; the second press ends at once.

    Under torchrun, which leaves its processes half a minute, SIGTERM counts as Ctrl-C.
    """
    pressed, process = [], os.getpid()

    def handler(signum, frame):
        if os.getpid() != process:
            return  # a loader's process has this handler too; its parent ends it
        if pressed:
            signal.default_int_handler(signum, frame)
        pressed.append(True)
        if launched().rank:
            return  # the first process speaks
        tqdm.write("Ctrl-C: finishing this step and writing a checkpoint; press again to stop at once.",
                   file=sys.stderr)

    answered = [signal.SIGINT] + [signal.SIGTERM] * (launched().launcher == TORCHRUN)
    previous = {number: signal.signal(number, handler) for number in answered}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def run_training(loop, config, out_dir, validation=None):
    """Run a `TrainLoop` to its end: log lines, a progress bar with the time left, validation, checkpoints.

    validation: `Validation`, or None.
    Of several processes all compute the steps, and the first one does the rest.
    Returns the folder of the last checkpoint, in the first process. Raises KeyboardInterrupt after Ctrl-C, when the
    checkpoint is written, and `UserError` when the loss is no number any more.
    """
    steps, before, started = last_step(config.training), loop.step, time.perf_counter()
    group, first = loop.group, loop.group.rank == 0
    say = partial(tqdm.write, file=sys.stderr) if first else lambda text: None
    say(f"training {steps} steps{f', from step {before} on' if before else ''}"
        f"{f', in {group.size} processes' if group.size > 1 else ''}; log and checkpoints go to {out_dir}")
    with stop_requested() as stop, contextlib.closing(
            _Run(loop, config, out_dir, validation, stop) if first else _Follower()) as run, tqdm(
            total=steps, initial=before, unit="step", desc="training", dynamic_ncols=True, disable=not first) as bar:
        for step, values in loop.run_loop(steps):
            _check_finite(step + 1, values)
            bar.update()
            run.validate(step + 1, values)
            stopping = any_process(group, stop())
            run.after_step(step + 1, stopping)
            if stopping:
                any_process(group, False)  # no process leaves before the checkpoint is written
                say(f"stopped at step {step + 1}; checkpoint: {run.saved}")
                raise KeyboardInterrupt
    say(f"trained {steps - before} steps in {time.perf_counter() - started:.0f} s; checkpoint: {run.saved}")
    return run.saved


class _Follower:
    """What every process but the first does after the steps: nothing."""

    saved = None

    def validate(self, done, values):
        """As of `_Run`."""

    def after_step(self, done, stopping):
        """As of `_Run`."""

    def close(self):
        """As of `_Run`."""


class _Run:
    """What happens after the steps of a training: log, validation, checkpoints.

    saved: folder of the last checkpoint, None before the first.
    """

    def __init__(self, loop, config, out_dir, validation, stop):
        self.loop, self.config, self.out_dir = loop, config, out_dir
        self.validation, self.stop = validation, stop
        self.saved, self.validated, self.started = None, {}, time.perf_counter()
        if not loop.step:
            checkpoint.forget_best(out_dir)  # of an earlier training in this folder
        late = self._resume_validation() if validation else {}
        self.log = RunLog(out_dir, loop.step, late)

    def _resume_validation(self):
        """Make up for a validation that was interrupted; its values for the log's last line."""
        validation, step = self.validation, self.loop.step
        if not checkpoint.point_to_best(self.out_dir, validation.best):
            validation.best = None  # it is in no folder of this run
        if not validation.is_due(step):
            return {}
        dice = validation.run(step, self.loop, self.stop)
        if self.stop():
            raise KeyboardInterrupt
        if not checkpoint.point_to_best(self.out_dir, validation.best):
            validation.best = None
        return {"val_dice": dice}

    def validate(self, done, values):
        """Record the values of step number `done`, and validate if it is time to."""
        self.log.record(values)
        due = self.validation and self.validation.is_due(done)
        self.validated = {"val_dice": self._validate(done)} if due else {}

    def after_step(self, done, stopping):
        """Write a line and save if it is time to."""
        training, validation, validated = self.config.training, self.validation, self.validated
        ends = done == last_step(training)
        if validated or ends or done % training.log_interval == 0 or stopping:
            self.log.write(step=done, seconds=time.perf_counter() - self.started, memory_mib=peak_memory_mib(),
                           **({"val_dice": None, **validated} if validation else {}))
        best = validation is not None and validation.is_best(done)
        if best or ends or done % training.save_interval == 0 or stopping:
            self._save(done)

    def _validate(self, done):
        try:
            return self.validation.run(done, self.loop, self.stop)
        except Exception:
            self._save(done)  # whatever is wrong with validation data must not cost steps
            raise

    def _save(self, done):
        state = self.validation.state() if self.validation else None
        self.saved = checkpoint.save(self.out_dir, done, self.config, self.loop.networks(),
                                     self.config.training.keep_checkpoints, state)

    def close(self):
        """Close the log."""
        self.log.close()


def _check_finite(step, values):
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise UserError(f"training: step {step} gave {wrong[0]} = {values[wrong[0]]}; expected a finite number. "
                        "Lower --lr, or look for NaN in the images; the checkpoints before are unharmed.")

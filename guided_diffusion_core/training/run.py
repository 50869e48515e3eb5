"""The run of a backend's training loop: log, progress bar, validation and checkpoints.

The loop (`train_util.TrainLoop`) computes the steps; nothing here depends on a framework.
"""

import contextlib
import math
import sys
import time
from functools import partial

from tqdm import tqdm

from guided_diffusion_core import checkpoints
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.system.interrupts import stop_requested
from guided_diffusion_core.system.process_memory import memory_figures
from guided_diffusion_core.system.processes import any_process
from guided_diffusion_core.system.progress import LateProgress, duration
from guided_diffusion_core.system.room import NoRoom, continued_by, lacks_memory, memory_for
from guided_diffusion_core.training.curves import Board, write_curves
from guided_diffusion_core.training.log import RunLog
from guided_diffusion_core.training.needs import STEPS_TIMED
from guided_diffusion_core.training.rates import last_step


def run_training(loop, config, out_dir, validation=None, seconds=0.0):
    """Run a `TrainLoop` to its end: log lines, a progress bar with the time left, validation, checkpoints.

    loop:       `TrainLoop`.
    config:     `Config` of the training.
    out_dir:    folder of the run.
    validation: `Validation`, or None.
    seconds:    time that the training has taken so far, before it was interrupted.
    Returns the folder of the last checkpoint, in the first process. Raises KeyboardInterrupt after Ctrl-C, when the
    checkpoint is written, and `UserError` when the loss is not finite, or the disk or the memory is full.

    All processes compute the steps; the first one does the rest.
    """
    steps = last_step(config.training)
    before = loop.step
    started = time.perf_counter() - seconds
    group = loop.group
    first = group.rank == 0
    say = partial(tqdm.write, file=sys.stderr) if first else lambda text: None
    resumed = f", from step {before} on" if before else ""
    shared = f", in {group.size} processes" if group.size > 1 else ""
    say(f"training {steps} steps{resumed}{shared}; log and checkpoints go to {out_dir}")
    with (
        stop_requested() as stop,
        continued_by(partial(_how_to_go_on, out_dir)),
        contextlib.closing(_Run(loop, config, out_dir, validation, stop, started) if first else _Follower()) as run,
        contextlib.closing(_Pace(config.training, before, say, validation is not None, shown=first)) as pace,
        memory_for("training", _asked(config), partial(_less_memory, config, out_dir)),
        run.rescuing(),
    ):
        unread = run.unread
        for step, values in loop.run_loop(steps):
            done = step + 1
            unread.append((done, values))
            if _reads(config.training, done, validation is not None) or pace.is_timed(done):
                run.record(_read(unread))
            pace.step(done)
            if run.is_due(done):
                pace.hide()  # a validation has a bar of its own, and Jittor compiles for it
            run.validate(done)
            # Ctrl-C can reach the processes in different steps. They agree here, so that all stop after the same one.
            stopping = any_process(group, stop())
            if stopping:
                run.record(_read(unread))
            run.after_step(done, stopping)
            if stopping:
                any_process(group, False)  # only waits: no process ends before the checkpoint is written
                say(f"stopped at step {done}; checkpoint: {run.saved}")
                raise KeyboardInterrupt
    say(f"trained {steps - before} steps in {time.perf_counter() - started - seconds:.0f} s; checkpoint: {run.saved}")
    return run.saved


def _how_to_go_on(out_dir):
    """Return what to do when a full disk has room again."""
    last = checkpoints.last_folder(out_dir)
    if last is None:
        return "start the same command again with --overwrite"
    return f"go on with --resume last, from {last.name}"


def _asked(config):
    """Return what a step computes at once, in words."""
    training = config.training
    part = f", --microbatch {training.microbatch}" if training.microbatch > 0 else ""
    return f"--batch_size {training.batch_size}{part} at --image_size {config.model.image_size}"


def _less_memory(config, out_dir):
    """Return what the user of a training can do when memory runs out."""
    recomputes = getattr(config.model, "use_checkpoint", True)
    if checkpoints.last_folder(out_dir) is not None:
        # A training that goes on keeps all settings that change its numbers.
        remedy = "Free memory" if recomputes else "Free memory, or give --use_checkpoint True"
    else:
        flags = ["a smaller --microbatch"]
        if not recomputes:
            flags.append("--use_checkpoint True")
        if config.compute.mixed_precision == "no":
            flags.append("--mixed_precision bf16")
        remedy = f"Give {' or '.join(flags)}"
    return f"{remedy}, then {_how_to_go_on(out_dir)}."


class _Pace:
    """The progress bar of a training, and the line that tells how long it will take.

    training: `TrainingConfig`. before: number of steps before the first one. say: function that prints a line.
    validates: there are validations. shown: show the bar.
    """

    def __init__(self, training, before, say, validates, shown):
        self.training = training
        self.validates = validates
        self.total = last_step(training)
        self.before = before
        self.say = say
        self.bar = LateProgress(before, total=self.total, unit="step", desc="training", disable=not shown)
        self.started = None

    def is_timed(self, done):
        """Return whether the clock starts or stops after step number `done`, which has to be computed by then."""
        return done in (self.before + 1, self.before + 1 + STEPS_TIMED)

    def step(self, done):
        """Count step number `done`."""
        self.bar.update(1)
        if self.started is None:
            self.started = time.perf_counter()
        elif self.is_timed(done):
            self.say(self._forecast(done, (time.perf_counter() - self.started) / STEPS_TIMED))

    def _forecast(self, done, seconds):
        """Return the line on the time to come; seconds: those of one step."""
        interval = self.training.save_interval
        checkpoint = min(done - done % interval + interval, self.total)
        without = ", without the validations" if self.validates else ""
        return (
            f"a step takes {seconds:.3g} s: the next checkpoint, after step {checkpoint}, in "
            f"{duration(seconds * (checkpoint - done))}; the end in {duration(seconds * (self.total - done))}{without}"
        )

    def hide(self):
        """Remove the bar from the terminal until the next step."""
        self.bar.hide()

    def close(self):
        """End the bar."""
        self.bar.close()


class _Follower:
    """The work of all processes but the first one after a step: none.

    unread: (step number, its values) since they were last read.
    """

    saved = None

    def __init__(self):
        self.unread = []

    def rescuing(self):
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def is_due(self, done):
        """Return False: the first process validates."""
        return False

    def record(self, values):
        """Do nothing."""

    def validate(self, done):
        """Do nothing."""

    def after_step(self, done, stopping):
        """Do nothing."""

    def close(self):
        """Do nothing."""


class _Run:
    """The work of the first process after each step: log, validation and checkpoints.

    saved:  folder of the last checkpoint, None before the first one.
    unread: (step number, its values) since they were last read.
    """

    def __init__(self, loop, config, out_dir, validation, stop, started):
        self.loop = loop
        self.config = config
        self.out_dir = out_dir
        self.validation = validation
        self.stop = stop
        self.saved = None
        self.unread = []
        self.kept = loop.step  # step of the last checkpoint
        self.validated = {}
        self.started = started
        # The checkpoints of this training: `keep_checkpoints` counts and removes no others.
        self.own = checkpoints.folders_until(out_dir, loop.step)
        if not loop.step:
            checkpoints.forget_best(out_dir)  # that of an earlier training in this folder
        late = self._resume_validation() if validation else {}
        self.log = RunLog(out_dir, loop.step, late)
        self.board = Board(out_dir, loop.step) if config.training.tensorboard else None

    def _resume_validation(self):
        """Repeat a validation that was interrupted, and return its values for the last line of the log."""
        validation = self.validation
        step = self.loop.step
        if not checkpoints.point_to_best(self.out_dir, validation.best):
            validation.best = None  # another run has the folder of the best one, or it was removed
        if not validation.is_due(step):
            return {}
        dice = validation.run(step, self.loop, self.stop)
        if self.stop():  # interrupted again: the checkpoint that is resumed still has this validation to do
            raise KeyboardInterrupt
        if not checkpoints.point_to_best(self.out_dir, validation.best):
            validation.best = None
        return {"val_dice": dice}

    def is_due(self, done):
        """Return whether a validation is due after step number `done`."""
        return self.validation is not None and self.validation.is_due(done)

    def record(self, values):
        """Record the values of some steps for the next line of the log."""
        for of_step in values:
            self.log.record(of_step)

    def validate(self, done):
        """Validate after `done` steps, if a validation is due."""
        self.validated = {"val_dice": self._validate(done)} if self.is_due(done) else {}

    def after_step(self, done, stopping):
        """Write a line of the log and a checkpoint if they are due.

        done:     number of steps so far.
        stopping: the run was interrupted, and this is its last step.
        """
        training = self.config.training
        validation = self.validation
        ends = done == last_step(training)
        if self.validated or ends or done % training.log_interval == 0 or stopping:
            self._write_line(done)
        best = validation is not None and validation.is_best(done)
        if best or ends or done % training.save_interval == 0 or stopping:
            self._save(done)

    def _write_line(self, done):
        # with validation, every line has the column
        dice = {"val_dice": None, **self.validated} if self.validation else {}
        seconds = time.perf_counter() - self.started
        try:
            line = self.log.write(step=done, seconds=seconds, **memory_figures(self.loop.gpu_memory_mib()), **dice)
            if self.board:
                self.board.add(line)
            if self.validated or done == last_step(self.config.training):
                write_curves(self.out_dir, done)
        except NoRoom:
            self._save(done)  # which can make room; a line of the log must not cost steps
            raise

    def _validate(self, done):
        try:
            return self.validation.run(done, self.loop, self.stop)
        except Exception:
            self._save(done)  # an error of the validation must not cost steps
            raise

    def _save(self, done):
        state = self.validation.state() if self.validation else None
        keep = self.config.training.keep_checkpoints
        self.saved = checkpoints.save(self.out_dir, done, self.config, self.loop.networks(), keep, state, own=self.own)
        self.own.append(self.saved)
        self.kept = done

    @contextlib.contextmanager
    def rescuing(self):
        """Save the whole steps so far when memory runs out in the block, if it suffices for that."""
        try:
            yield
        except Exception as error:
            # Other processes are still in the step, in which they do not help to read the losses.
            if lacks_memory(error) and self.loop.step > self.kept and self.loop.group.size == 1:
                with contextlib.suppress(Exception):
                    self.record(_read(self.unread))
                    self._write_line(self.loop.step)
                    self._save(self.loop.step)
            raise

    def close(self):
        """Close the log."""
        self.log.close()
        if self.board:
            self.board.close()


def _reads(training, done, validates):
    """Return whether the losses are read after `done` steps, in all processes: before a line of the log, before a
    validation, and before a checkpoint, in which a loss that is not finite has to be found.

    validates: the training has a validation.
    """
    intervals = [training.log_interval, training.save_interval]
    if validates:
        intervals.append(training.val_interval)
    return done == last_step(training) or any(done % interval == 0 for interval in intervals)


def _read(unread):
    """Empty a list of (step number, values) and return the values. Raises `UserError` if one is not finite."""
    found = []
    for done, values in unread:
        _check_finite(done, values)
        found.append(dict(values))
    unread.clear()
    return found


def _check_finite(step, values):
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise UserError(
            f"training: step {step} gave {wrong[0]} = {values[wrong[0]]}; expected a finite number. "
            "Lower --lr, or look for NaN in the images; the checkpoints before are unharmed."
        )

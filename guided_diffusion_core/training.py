"""What surrounds a backend's training loop: log, progress bar, checkpoints, Ctrl-C.

The loop itself (`train_util.TrainLoop`) computes and yields; nothing here depends on a framework.
"""
import math
import resource
import signal
import sys
import time
from contextlib import contextmanager

from tqdm import tqdm

from guided_diffusion_core import checkpoint
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.runlog import RunLog


def last_step(training):
    """The number of steps after which training ends: `max_steps`, or sooner the end of annealing."""
    return min(training.max_steps, training.lr_anneal_steps or training.max_steps)


def learning_rate(lr, lr_anneal_steps, step):
    """The rate of the optimizer step number `step` (from 0): constant, or falling linearly to zero
    at `lr_anneal_steps`."""
    return lr * (1 - step / lr_anneal_steps) if lr_anneal_steps else lr


def ema_rate_at(rate, step, warmup):
    """The rate of the moving average at step number `step` (from 0).

    With `warmup`, min(rate, (1 + n) / (10 + n)), so that the average of a short training is not
    its random start (as in TensorFlow's ExponentialMovingAverage with `num_updates`).
    """
    return min(rate, (1 + step) / (10 + step)) if warmup else rate


def peak_memory_mib():
    """Largest memory that this process has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def stop_requested():
    """Yield a function that tells whether Ctrl-C was pressed; the second press ends at once."""
    pressed = []

    def handler(signum, frame):
        if pressed:
            signal.default_int_handler(signum, frame)
        pressed.append(True)
        tqdm.write("Ctrl-C: finishing this step and writing a checkpoint; press again to stop at once.",
                   file=sys.stderr)

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)


def run_training(loop, config, out_dir):
    """Run a `TrainLoop` to its end: log lines, a progress bar with the time left, checkpoints.

    Returns the folder of the last checkpoint. Raises KeyboardInterrupt after Ctrl-C, when the
    checkpoint is written, and `UserError` when the loss is no number any more.
    """
    training = config.training
    steps, saved = last_step(training), None
    tqdm.write(f"training {steps} steps; log and checkpoints go to {out_dir}", file=sys.stderr)
    log, started = RunLog(out_dir), time.perf_counter()
    try:
        with stop_requested() as stop, tqdm(total=steps, unit="step", desc="training", dynamic_ncols=True) as bar:
            for step, values in loop.run_loop(steps):
                done = step + 1
                _check_finite(done, values)
                log.record(values)
                bar.update()
                if done % training.log_interval == 0 or done == steps or stop():
                    log.write(step=done, seconds=time.perf_counter() - started, memory_mib=peak_memory_mib())
                if done % training.save_interval == 0 or done == steps or stop():
                    saved = checkpoint.save(out_dir, done, config, loop.networks())
                if stop():
                    tqdm.write(f"stopped at step {done}; checkpoint: {saved}", file=sys.stderr)
                    raise KeyboardInterrupt
    finally:
        log.close()
    tqdm.write(f"trained {steps} steps in {time.perf_counter() - started:.0f} s; checkpoint: {saved}", file=sys.stderr)
    return saved


def _check_finite(step, values):
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise UserError(f"training: step {step} gave {wrong[0]} = {values[wrong[0]]}; expected a finite number. "
                        "Lower --lr, or look for NaN in the images; the checkpoints before are unharmed.")

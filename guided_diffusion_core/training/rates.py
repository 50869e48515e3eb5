"""The numbers that change from step to step: learning rate, rate of the moving average, last step."""

import math


def last_step(training):
    """Return the number of steps after which training ends: `max_steps`, or the end of annealing if that is sooner."""
    return min(training.max_steps, training.lr_anneal_steps or training.max_steps)


def learning_rate(lr, lr_anneal_steps, step, schedule="linear", cycles=1):
    """Return the learning rate of an optimizer step.

    lr:              rate of the first step.
    lr_anneal_steps: steps over which it falls to zero; 0 keeps it.
    step:            number of the step, from 0.
    schedule:        "constant"; "linear"; "cosine", half a period of a cosine (SGDR: Loshchilov & Hutter 2017,
                     arXiv:1608.03983, eq. 5); or "cosine-restarts", which falls `cycles` times.
    cycles:          number of restarts, each with lr_anneal_steps / cycles steps.
    """
    if schedule == "constant" or not lr_anneal_steps:
        return lr
    share = step / lr_anneal_steps
    if schedule == "linear":
        return lr * (1 - share)
    if schedule == "cosine-restarts":
        # share of the current cycle, without rounding at its start
        share = step * cycles % lr_anneal_steps / lr_anneal_steps
    return lr * 0.5 * (1 + math.cos(math.pi * share))


def ema_rate_at(rate, step, warmup):
    """Return the rate of the moving average at step number `step` (from 0).

    It is min(rate, (1 + step) / (10 + step)) with `warmup`, as in TensorFlow's ExponentialMovingAverage with
    `num_updates`. The average of a short training then forgets the random weights of its start.
    """
    return min(rate, (1 + step) / (10 + step)) if warmup else rate

"""The numbers that change from step to step: learning rate, rate of the moving average, last step."""

import math


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

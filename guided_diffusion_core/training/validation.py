"""Validation during a training: the Dice of sampled masks, and the checkpoint with the highest one.

The masks are those that `medsegdiff sample` would sample with the checkpoint of that step, its seed
and one member per ensemble, and the Dice is the mean that `medsegdiff score` would print: at the
ground truth's own size, the mean over the labels.
"""

import dataclasses
from pathlib import Path

from guided_diffusion_core.config import process_steps
from guided_diffusion_core.diffusion.schedule import sampling_timesteps
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.evaluation import evaluate, write_summary
from guided_diffusion_core.results.outputs import require_names
from guided_diffusion_core.sampling.run import SamplingRun, check_dataset
from guided_diffusion_core.training.folder import SUMMARY, VALIDATION, clear_validation
from guided_diffusion_core.training.sets import open_val_dir

MOST_STEPS = 10  # network evaluations per image, unless --val_steps asks for more


class _Stopped(Exception):
    """Ctrl-C was pressed in the middle of a validation."""


class Validation:
    """Samples and scores the validation cases with a loop's first moving average.

    config:  `Config` of the training.
    out_dir: folder of the run; its subfolder `validation` has the masks and scores of the newest validation.
    state:   the value of the method `state` in the checkpoint that is resumed, or None.
    cases:   `ValidationCases`; None for those in `val_dir`.

    Attributes:
    step: the last step that was validated.
    best: {"step", "dice"} of the highest Dice, or None.
    Raises `UserError` if the data or the settings cannot be used.
    """

    def __init__(self, config, out_dir, state=None, cases=None):
        cases = cases or open_val_dir(config)
        check_dataset(cases.dataset, config, config.training.batch_size)
        self.config = config
        self.folder = Path(out_dir) / VALIDATION
        self.sampling = _sampling(config)
        self.dataset = cases.dataset
        self.truths = cases.truths
        require_names(self.folder, self.dataset.cases(), self.dataset.labels)
        self.step = state["step"] if state else 0
        self.best = state["best"] if state else None

    def state(self):
        """Return the values for a checkpoint, JSON values."""
        return {"step": self.step, "best": self.best}

    def is_due(self, step):
        """Return whether a validation is due after `step` steps, and has not been done."""
        return step > self.step and step % self.config.training.val_interval == 0

    def run(self, step, loop, stop):
        """Validate a `TrainLoop` after `step` steps.

        stop: function that returns whether to stop the validation; a stopped validation remains due.
        Returns the Dice in [0, 1], or None if the validation was stopped or no case has foreground.
        """
        sampler = loop.average_sampler(self.config, self.sampling)
        settings = self.config.training

        # Called once per batch, so that Ctrl-C need not wait for the whole validation.
        def stoppable(images, keys):
            if stop():
                raise _Stopped
            return sampler(images, keys)

        clear_validation(self.folder)
        try:
            run = SamplingRun(self.dataset, self.folder, settings.batch_size, self.sampling.threshold, {"step": step})
            run.run(stoppable)
        except _Stopped:
            return None
        summary = evaluate(self.folder, self.truths, self.sampling.threshold)
        write_summary(self.folder / SUMMARY, summary)
        self.step = step
        dice = summary["foreground_mean"]["Dice"]
        if dice is not None and (self.best is None or dice > self.best["dice"]):
            self.best = {"step": step, "dice": dice}
        return dice

    def is_best(self, step):
        """Return whether the network after `step` steps is the best one so far."""
        return self.best is not None and self.best["step"] == step


def _sampling(config):
    """Return the `SamplingConfig` of validation: the configured sampler with one member and few steps.

    DDIM with eta 1, which needs no learned variance, replaces the ancestral sampler in fewer steps than in training.
    """
    trained = process_steps(config.diffusion)
    few = min(config.sampling.sample_steps or trained, trained, MOST_STEPS)  # `sample_steps` 0 means all
    steps = config.training.val_steps or few
    sampling_timesteps(trained, steps)  # refuses more steps than the process has
    sampling = dataclasses.replace(config.sampling, num_ensemble=1, sample_steps=steps)
    if steps < trained and sampling.sampler == "ancestral":
        sampling = dataclasses.replace(sampling, sampler="ddim", eta=1.0)
    return sampling


def open_validation(config, out_dir, last_step, state=None, cases=None):
    """Return the `Validation` of a training of `last_step` steps, or None without cases for it.

    cases: `ValidationCases` (`sets.split_sets`); None for those in `val_dir`.
    """
    if not config.training.val_dir and cases is None:
        return None
    if config.training.val_interval > last_step:
        raise found_expected(
            "--val_interval",
            config.training.val_interval,
            f"at most {last_step}, where this training ends",
            "Give a smaller one, or leave the validation out.",
        )
    return Validation(config, out_dir, state, cases)

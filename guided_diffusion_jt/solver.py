"""The loop of every sampler: from noise to a mask by the rows of a table of numbers."""

import numpy as np
from tqdm import tqdm

from guided_diffusion_core.diffusion.schedule import quantile_place
from guided_diffusion_jt import runtime
from guided_diffusion_jt.nn import per_case
from guided_diffusion_jt.process import learned_log_variance, normal_like
from guided_diffusion_jt.runtime import jt


class Solver:
    """Samples masks by the steps x = xstart x_0 + before x_0' + x_t x_t + noise eps.

    process: `Process` with the methods of `ProcessTensors`.
    steps:   `Steps`, the rows of a sampler on that process.
    clip_denoised: clip the predicted mask x_0 to [-1, 1].
    dynamic_thresholding: apply `dynamic_threshold` to it instead.
    """

    def __init__(self, process, steps, clip_denoised=True, dynamic_thresholding=False):
        self.process = process
        self.steps = steps
        self.clip_denoised = clip_denoised
        self.dynamic_thresholding = dynamic_thresholding
        self.adds_noise = bool(steps.noise.any())

    def step(self, evaluate, x_t, rows, noise=None, before=None):
        """Take one step.

        evaluate: function(x_t, t, before) that returns the network's (out, cal) at its time t.
        x_t:      (N, K, H, W). rows: (N,) numpy, the row of the table for each case.
        noise:    (N, K, H, W) standard normal, not read where the rows add none; None draws it.
        before:   (N, K, H, W), the mask predicted one step before; None in the first step.
        Returns a dict: sample (x at the next time), pred_xstart (the predicted mask) and cal (the calibration
        mask), each (N, K, H, W).
        """
        steps = self.steps
        t = steps.times[rows]
        out, cal = self.process._apply(evaluate, x_t, t, before)
        prediction = out[:, : x_t.shape[1]]
        x_0 = self._limited(self.process._predict_xstart(prediction, x_t, t))
        sample = per_case(steps.xstart[rows], x_t) * x_0
        if steps.before.any():
            sample = sample + per_case(steps.before[rows], x_t) * (x_0 if before is None else before)
        sample = sample + per_case(steps.x_t[rows], x_t) * x_t
        if self.adds_noise:
            noise = normal_like(x_t) if noise is None else noise
            sample = sample + self._deviation(out, rows, x_t) * noise
        return {"sample": sample, "pred_xstart": x_0, "cal": cal}

    def _limited(self, x_0):
        """Return the predicted mask within [-1, 1], if asked for."""
        if self.dynamic_thresholding:
            return dynamic_threshold(x_0)
        return x_0.clamp(-1.0, 1.0) if self.clip_denoised else x_0

    def _deviation(self, out, rows, x_t):
        """Return the factor of the noise: the table's, times the learned deviation where there is one."""
        scale = per_case(self.steps.noise[rows], x_t)
        if self.steps.log_variance is None:
            return scale
        smallest, largest = (per_case(values[rows], x_t) for values in self.steps.log_variance)
        return scale * jt.exp(0.5 * learned_log_variance(out[:, x_t.shape[1] :], smallest, largest))

    def run(self, evaluate, x_t, step_noise=None, progress=False):
        """Yield the dict of `step` after each step, from noise x_t (N, K, H, W) on.

        evaluate:   as of `step`. progress: show a progress bar.
        step_noise: function of a step's number on the noise tape (`Process.noise_step`) to its noise
                    (N, K, H, W), called once for each step of a sampler that adds noise; None draws it.
        """
        before = None
        numbers = self.process.noise_step(self.steps.times).tolist()
        for row in tqdm(range(len(numbers)), disable=not progress, unit="step"):
            with runtime.no_grad():
                drawn = self.adds_noise and step_noise is not None
                noise = step_noise(numbers[row]).cast(x_t.dtype) if drawn else None
                out = self.step(evaluate, x_t, np.full(x_t.shape[0], row), noise, before)
            x_t = out["sample"]
            before = out["pred_xstart"]
            jt.sync([value for value in out.values() if value is not None])  # else the graph of all steps grows
            yield out


def dynamic_threshold(x_start):
    """Return a predicted mask within [-1, 1] by dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487,
    section 2.3): s, the 0.995 quantile of |x_0| and at least 1, is the limit to which x_0 is clipped and by which
    it is divided.

    x_start: (N, K, H, W), whose shape is returned; each case's each channel has its own s.
    """
    ordered = jt.sort(x_start.abs().reshape(x_start.shape[0] * x_start.shape[1], -1), dim=1)[0]  # (N * K, H * W)
    lower, upper, share = quantile_place(ordered.shape[1])
    quantile = ordered[:, lower] + (ordered[:, upper] - ordered[:, lower]) * runtime.scalar(share)
    limit = quantile.clamp(1.0).reshape(*x_start.shape[:2], 1, 1)  # (N, K, 1, 1)
    return jt.minimum(jt.maximum(x_start, -limit), limit) / limit

"""The loop of all samplers: from noise to a mask, by the rows of a table of numbers."""

import numpy as np
from tqdm import tqdm

from guided_diffusion_core.diffusion.schedule import quantile_place
from guided_diffusion_jt import runtime
from guided_diffusion_jt.nn import per_case
from guided_diffusion_jt.process import learned_log_variance, normal_like
from guided_diffusion_jt.runtime import jt


class Solver:
    """A sampler of masks, whose steps are

        x_next = xstart * x_0 + before * x_0' + x_t * x_t + noise * eps

    with the numbers xstart, before, x_t and noise of a row of its table. x_0 is the mask predicted now, x_0' the one
    predicted one step before, and eps standard normal noise.

    process:              `Process` with the methods of `ProcessTensors`.
    steps:                `Steps`, the table of a sampler on that process.
    clip_denoised:        clip x_0 to [-1, 1].
    dynamic_thresholding: apply `dynamic_threshold` to x_0 instead.
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
        x_t:      (N, K, H, W), the noised mask.
        rows:     (N,) numpy, the row of the table for each case.
        noise:    (N, K, H, W) standard normal, not read by a sampler that adds none; None draws it.
        before:   (N, K, H, W), the mask predicted one step before; None in the first step.
        Returns a dict of tensors (N, K, H, W): sample (x at the next time), pred_xstart (the predicted mask) and cal
        (the calibration mask).
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
        """Limit the predicted mask to [-1, 1], as the sampler's settings say."""
        if self.dynamic_thresholding:
            return dynamic_threshold(x_0)
        return x_0.clamp(-1.0, 1.0) if self.clip_denoised else x_0

    def _deviation(self, out, rows, x_t):
        """Return the factor of the noise: that of the table, times the standard deviation if the network learns it."""
        scale = per_case(self.steps.noise[rows], x_t)
        if self.steps.log_variance is None:
            return scale
        smallest, largest = (per_case(values[rows], x_t) for values in self.steps.log_variance)
        return scale * jt.exp(0.5 * learned_log_variance(out[:, x_t.shape[1] :], smallest, largest))

    def run(self, evaluate, x_t, step_noise=None, progress=False):
        """Yield the dict of `step` after each step, from noise x_t (N, K, H, W) on.

        evaluate:   as in `step`.
        x_t:        the noise from which the sampler starts.
        step_noise: function from the number of a step on the noise tape (`Process.noise_step`) to its noise
                    (N, K, H, W). It is called once in each step of a sampler that adds noise; None draws the noise.
        progress:   show a progress bar.
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
            # Compute the step now: otherwise the graph of all steps stays in memory.
            jt.sync([value for value in out.values() if value is not None])
            yield out


# clip(x_0, -s, s) / s, where s is the 0.995 quantile of |x_0|, and at least 1 (Saharia et al. 2022, arXiv:2205.11487,
# section 2.3)
def dynamic_threshold(x_start):
    """Limit a predicted mask to [-1, 1] by dynamic thresholding.

    x_start: x_0, (N, K, H, W). Each channel of each case has its own s.
    """
    ordered = jt.sort(x_start.abs().reshape(x_start.shape[0] * x_start.shape[1], -1), dim=1)[0]  # (N * K, H * W)
    # The quantile lies between two values of the sorted ones.
    lower, upper, share = quantile_place(ordered.shape[1])
    quantile = ordered[:, lower] + (ordered[:, upper] - ordered[:, lower]) * runtime.scalar(share)
    limit = quantile.clamp(1.0).reshape(*x_start.shape[:2], 1, 1)  # (N * K,) to (N, K, 1, 1)
    return jt.minimum(jt.maximum(x_start, -limit), limit) / limit

"""The diffusion process of the mask by the original's names: posterior, variational bound and samplers.

All numbers come from `guided_diffusion_core/diffusion`, and the loop of the samplers is in `solver.py`.
"""

import math

from guided_diffusion_core.config import SamplingConfig
from guided_diffusion_core.diffusion.gaussian import GaussianProcess
from guided_diffusion_core.diffusion.schedule import (
    DiffusionTables,
    LossType,
    ModelMeanType,
    ModelVarType,
    betas_for_alpha_bar,
    get_named_beta_schedule,
)
from guided_diffusion_core.diffusion.solvers import SOLVERS
from guided_diffusion_jt import runtime
from guided_diffusion_jt.kernels.sums import mean_last
from guided_diffusion_jt.losses import discretized_gaussian_log_likelihood, normal_kl
from guided_diffusion_jt.nn import mean_flat, per_case
from guided_diffusion_jt.process import ProcessTensors, learned_log_variance, normal_like, on_image, time_array
from guided_diffusion_jt.runtime import jt
from guided_diffusion_jt.solver import Solver

CALIBRATION_WEIGHT = 10.0  # factor of the calibration mask's term in the total loss
AGREEMENT = 0.65  # Dice from which sample and calibration mask get the same weight


class GaussianDiffusion(ProcessTensors, GaussianProcess):
    """A diffusion process, how the network's output is read, and how it is trained.

    betas:             (T,) numpy, variance that each step adds, between 0 and 1.
    model_mean_type:   ModelMeanType, what the network predicts.
    model_var_type:    ModelVarType, the variance of a reverse step.
    loss_type:         LossType, the training objective.
    rescale_timesteps: scale the network's time input to 0 to 1000.
    mask_channels:     K, channels of the mask.
    """

    def __init__(self, *, betas, model_mean_type, model_var_type, loss_type, rescale_timesteps=False, mask_channels=1):
        super().__init__(betas, model_mean_type, model_var_type, rescale_timesteps)
        self.loss_type = loss_type
        self.mask_channels = mask_channels

    def q_posterior_mean_variance(self, x_start, x_t, t):
        """Return (mean, variance, log_variance) of q(x_{t-1} | x_t, x_0), each of the shape of x_t.

            mean     = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t) x_0
                       + sqrt(alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) x_t
            variance = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t

        (Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7). The variance at t = 0 is 0; log_variance there is that of
        t = 1.
        """
        t = time_array(t)
        mean = per_case(self.posterior_mean_coef1[t], x_t) * x_start + per_case(self.posterior_mean_coef2[t], x_t) * x_t
        return (
            mean,
            per_case(self.posterior_variance[t], x_t),
            per_case(self.posterior_log_variance_clipped[t], x_t),
        )

    def p_mean_variance(self, model, x, t, clip_denoised=True, model_kwargs=None):
        """Return the network's distribution p(x_{t-1} | x_t).

        x:             (N, C, H, W) network input.
        t:             (N,) time step indices.
        clip_denoised: clip the predicted mask to [-1, 1].
        Returns a dict of tensors (N, K, H, W): mean, variance, log_variance, pred_xstart (the predicted mask) and cal
        (the calibration mask).
        """
        t = time_array(t)
        x_t = self._mask(x)
        out, cal = self._apply(on_image(model, self._image(x), model_kwargs), x_t, t)
        return {**self._reverse_step(out, x_t, t, clip_denoised), "cal": cal}

    def _reverse_step(self, out, x_t, t, clip_denoised):
        """Return mean, variance, log_variance and pred_xstart from the network's output at x_t."""
        variance, log_variance = self._variance(out, x_t, t)
        pred_xstart = self._predict_xstart(out[:, : self.mask_channels], x_t, t)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1.0, 1.0)
        mean = self.q_posterior_mean_variance(pred_xstart, x_t, t)[0]
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": pred_xstart}

    def _variance(self, out, x_t, t):
        """Return the variance of the reverse step and its logarithm."""
        smallest = per_case(self.posterior_log_variance_clipped[t], x_t)
        if self.model_var_type == ModelVarType.FIXED_SMALL:
            return per_case(self.posterior_variance[t], x_t), smallest
        if self.model_var_type == ModelVarType.FIXED_LARGE:
            return per_case(self.fixed_large_variance[t], x_t), per_case(self.fixed_large_log_variance[t], x_t)
        largest = per_case(self.log_betas[t], x_t)
        log_variance = learned_log_variance(out[:, self.mask_channels :], smallest, largest)
        return jt.exp(log_variance), log_variance

    def _objective(self, out, mask, x_t, t, noise):
        """Return the squared error, the variational bound's term, or both, and their sum `loss`."""
        terms = {}
        if not self.loss_type.is_vb():
            terms["loss_diff"] = super()._objective(out, mask, x_t, t, noise)["loss"]
            # The bound trains only the variance (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1).
            prediction = out[:, : self.mask_channels].detach()
            out = jt.concat([prediction, out[:, self.mask_channels :]], dim=1)
        if self.loss_type.is_vb() or self.learns_sigma:
            steps = self.num_timesteps
            scales = {LossType.RESCALED_MSE: steps / 1000.0, LossType.RESCALED_KL: steps}
            terms["vb"] = self._vb_term(out, mask, x_t, t) * runtime.scalar(scales.get(self.loss_type, 1.0))
        terms["loss"] = sum(terms[name] for name in ("loss_diff", "vb") if name in terms)
        return terms

    def _vb_term(self, out, x_start, x_t, t):
        """Return the step's term of the variational bound, (N,) in bits per pixel.

        It is -log p(x_0 | x_1) at t = 0, and KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) at all other steps (Ho et
        al. 2020, arXiv:2006.11239, eq. 5).
        """
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start, x_t, t)
        step = self._reverse_step(out, x_t, t, clip_denoised=False)
        divergence = mean_flat(normal_kl(true_mean, true_log_variance, step["mean"], step["log_variance"]))
        decoder = -mean_flat(
            discretized_gaussian_log_likelihood(x_start, means=step["mean"], log_scales=0.5 * step["log_variance"])
        )
        return jt.where(runtime.to_tensor(t) == 0, decoder, divergence) / runtime.scalar(math.log(2.0))

    def _solver(self, sampler, clip_denoised, dynamic_thresholding=False, eta=0.0):
        """Return the `Solver` of a sampler over all steps of this process."""
        steps = SOLVERS[sampler](self, self.times(0), SamplingConfig(eta=eta))
        return Solver(self, steps, clip_denoised, dynamic_thresholding)

    def _step(self, solver, model, x, t, noise, model_kwargs, before=None):
        """Take the step of a solver at network input x (N, C, H, W) and time step indices t (N,)."""
        rows = self.num_timesteps - 1 - time_array(t)
        return solver.step(on_image(model, self._image(x), model_kwargs), self._mask(x), rows, noise, before)

    def _run(self, solver, model, x, step_noise, model_kwargs, progress):
        """Yield the steps of a solver from the network input x (N, C, H, W) on."""
        evaluate = on_image(model, self._image(x), model_kwargs)
        return solver.run(evaluate, self._mask(x), step_noise, progress)

    def _run_known(self, solver, model, img, noise, step_noise, model_kwargs, progress):
        """Sample as `p_sample_loop_known` does, by any solver."""
        noise = normal_like(self._mask(img)) if noise is None else noise.cast(img.dtype)
        x_noisy = jt.concat([self._image(img), noise], dim=1)  # (N, C, H, W)
        for out in self._run(solver, model, x_noisy, step_noise, model_kwargs, progress):
            final = out
        cal = final["cal"]
        blended = None if cal is None else blend_calibration(final["sample"], cal)
        return final["sample"], x_noisy, img, cal, blended

    def p_sample(self, model, x, t, noise=None, clip_denoised=True, model_kwargs=None):
        """Take one ancestral step (Ho et al. 2020, arXiv:2006.11239, algorithm 2).

        x:     (N, C, H, W) network input at t.
        t:     (N,) time step indices.
        noise: (N, K, H, W) standard normal, without effect at t = 0; None draws it.
        Returns a dict of tensors (N, K, H, W): sample (x_{t-1}), pred_xstart and cal.
        """
        return self._step(self._solver("ancestral", clip_denoised), model, x, t, noise, model_kwargs)

    def ddim_sample(self, model, x, t, noise=None, clip_denoised=True, model_kwargs=None, eta=0.0):
        """Take one DDIM step (Song et al. 2021, arXiv:2010.02502, eq. 12), with the arguments of `p_sample`.

        eta: 0 (deterministic, the noise is unused) to 1 (ancestral). Raises `UserError` for other values.
        """
        return self._step(self._solver("ddim", clip_denoised, eta=eta), model, x, t, noise, model_kwargs)

    def dpm_solver_sample(
        self, model, x, t, before=None, clip_denoised=True, model_kwargs=None, dynamic_thresholding=False
    ):
        """Take one step of DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095, algorithm 2), as `p_sample` does.

        before:               (N, K, H, W), pred_xstart of the step before, t + 1; None takes a step of first order.
        dynamic_thresholding: apply `solver.dynamic_threshold` to the predicted mask instead of clipping it.
        """
        solver = self._solver("dpm-solver++", clip_denoised, dynamic_thresholding)
        return self._step(solver, model, x, t, None, model_kwargs, before)

    def p_sample_loop_known(
        self, model, shape, img, noise=None, step_noise=None, clip_denoised=True, model_kwargs=None, progress=False
    ):
        """Sample masks for images by the ancestral sampler, over all steps of this process.

        model:         the network, in eval mode.
        shape:         not read; it is an argument of the original.
        img:           (N, C, H, W), the channels of the image, then K that are not read.
        noise:         (N, K, H, W), x_T; None draws it.
        step_noise:    function from the index of a step in the whole process (int, `timestep_map`) to its noise
                       (N, K, H, W). It is called once for each step, in descending order; None draws the noise.
        clip_denoised: clip the predicted mask to [-1, 1] in each step.
        model_kwargs:  dict of further arguments of the network.
        progress:      show a progress bar.
        Returns (sample, x_noisy, img, cal, cal_out): the sampled mask (N, K, H, W), the first network input, `img`,
        the calibration mask, and its blend with the sample (`blend_calibration`).
        """
        solver = self._solver("ancestral", clip_denoised)
        return self._run_known(solver, model, img, noise, step_noise, model_kwargs, progress)

    def ddim_sample_loop_known(
        self,
        model,
        shape,
        img,
        noise=None,
        step_noise=None,
        clip_denoised=True,
        model_kwargs=None,
        progress=False,
        eta=0.0,
    ):
        """Sample by DDIM, with the arguments of `p_sample_loop_known`.

        eta: 0 (deterministic, without step_noise) to 1 (ancestral).
        """
        solver = self._solver("ddim", clip_denoised, eta=eta)
        return self._run_known(solver, model, img, noise, step_noise, model_kwargs, progress)

    def dpm_solver_sample_loop_known(
        self,
        model,
        shape,
        img,
        noise=None,
        step_noise=None,
        clip_denoised=True,
        model_kwargs=None,
        progress=False,
        dynamic_thresholding=False,
    ):
        """Sample by DPM-Solver++, with the arguments of `p_sample_loop_known`. step_noise is not read.

        dynamic_thresholding: apply `solver.dynamic_threshold` to the predicted mask instead of clipping it.
        """
        solver = self._solver("dpm-solver++", clip_denoised, dynamic_thresholding)
        return self._run_known(solver, model, img, noise, step_noise, model_kwargs, progress)

    def p_sample_loop_progressive(
        self, model, shape, noise, step_noise=None, clip_denoised=True, model_kwargs=None, progress=False
    ):
        """Yield the dict of `p_sample` after each step, with the arguments of `p_sample_loop_known`.

        noise: the first network input (N, C, H, W) here: the channels of the image, then x_T.
        """
        solver = self._solver("ancestral", clip_denoised)
        return self._run(solver, model, noise, step_noise, model_kwargs, progress)

    def ddim_sample_loop_progressive(
        self, model, shape, noise, step_noise=None, clip_denoised=True, model_kwargs=None, progress=False, eta=0.0
    ):
        """Yield the steps of DDIM, with the arguments of `p_sample_loop_progressive`."""
        solver = self._solver("ddim", clip_denoised, eta=eta)
        return self._run(solver, model, noise, step_noise, model_kwargs, progress)


def weighted_total(terms, weights):
    """Return loss * weights, plus 10 loss_cal of a network with a calibration mask: (N,), whose mean is minimised.

    terms: of `training_losses_segmentation`. weights: (N,) of `ScheduleSampler.sample`.
    """
    total = terms["loss"] * weights.cast(terms["loss"].dtype)
    if "loss_cal" in terms:
        total = total + CALIBRATION_WEIGHT * terms["loss_cal"]
    return total


def total_loss(terms, weights):
    """Return the number to minimise, the mean of `weighted_total`."""
    return mean_last(weighted_total(terms, weights))


def blend_calibration(sample, cal):
    """Blend the calibration mask with the sampled mask.

    sample: (N, K, H, W).
    cal:    (N, K, H, W), in [0, 1].
    Returns (N, K, H, W) in [0, 1].

    Each channel of each case is blended by the Dice of cal and the positive pixels of the sample: cal + sample / 4 if
    it is below 0.65, and their mean otherwise. Two empty masks agree.
    """
    positive = (sample > 0).cast(sample.dtype)
    common, together = (
        mean_flat(value.reshape(-1, 1, *value.shape[2:]))  # (N, K, H, W) to (N K, 1, H, W) to (N K,)
        for value in (positive * cal, positive + cal)
    )
    # Dice = 2 common / together < 0.65, without a division by zero; (N K,) to (N, K, 1, 1)
    differ = (2.0 * common < AGREEMENT * together).reshape(*sample.shape[:2], 1, 1)
    return jt.where(differ, cal + 0.25 * sample, 0.5 * cal + 0.5 * sample).clamp(0.0, 1.0)

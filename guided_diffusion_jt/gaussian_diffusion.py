"""The diffusion process of the mask: objective and samplers.

Only the mask is diffused, K channels of it, one for each label: a network input is (N, C, H, W), the
image's channels and last those of the noised mask; mask, noise and predictions are (N, K, H, W). The
network is called `model(x, t, **model_kwargs) -> (out, cal)`: its prediction, K more channels for the
variance where that is learned, and the calibration mask in (0, 1). All numbers of the process come from
`guided_diffusion_core/diffusion/schedule.py` and take the type and device of the tensor they meet.
"""

import math

import numpy as np
from tqdm import tqdm

from guided_diffusion_core.diffusion.schedule import (  # noqa: F401
    DiffusionTables,
    LossType,
    ModelMeanType,
    ModelVarType,
    betas_for_alpha_bar,
    ddim_coefficients,
    get_named_beta_schedule,
)
from guided_diffusion_core.networks.family import as_prediction
from guided_diffusion_jt import runtime
from guided_diffusion_jt.dpm_solver import DPMSolverSampling
from guided_diffusion_jt.losses import discretized_gaussian_log_likelihood, normal_kl
from guided_diffusion_jt.nn import extract, mean_flat, mean_last
from guided_diffusion_jt.runtime import jt

CALIBRATION_WEIGHT = 10.0  # of the calibration mask's term in the total loss
AGREEMENT = 0.65  # Dice from which on sample and calibration mask count alike


class GaussianDiffusion(DPMSolverSampling, DiffusionTables):
    """A diffusion process, how the network's output is read, and how it is trained.

    betas:             (T,) numpy, variance that each step adds, between 0 and 1.
    model_mean_type:   ModelMeanType, what the network predicts.
    model_var_type:    ModelVarType, the variance of a reverse step.
    loss_type:         LossType, the training objective.
    rescale_timesteps: scale the network's time input to 0 to 1000.
    mask_channels:     K, channels of the mask.
    """

    def __init__(self, *, betas, model_mean_type, model_var_type, loss_type, rescale_timesteps=False, mask_channels=1):
        super().__init__(betas)
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.learns_sigma = model_var_type in (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)
        self.loss_type = loss_type
        self.rescale_timesteps = rescale_timesteps
        self.mask_channels = mask_channels
        self.timestep_map = tuple(range(self.num_timesteps))
        self.whole_betas = self.betas
        self.original_num_steps = self.num_timesteps

    def q_mean_variance(self, x_start, t):
        """q(x_t | x_0) (DDPM, arXiv:2006.11239, eq. 4).

        x_start: (N, K, H, W) mask. t: (N,) time step indices, 0 to T - 1.
        Returns (mean, variance, log_variance), each of x_start's shape.
        """
        return (
            extract(self.sqrt_alphas_cumprod, t, x_start) * x_start,
            extract(self.one_minus_alphas_cumprod, t, x_start),
            extract(self.log_one_minus_alphas_cumprod, t, x_start),
        )

    def q_sample(self, x_start, t, noise=None):
        """A draw of q(x_t | x_0), x_start's shape. noise: of that shape; None draws it anew."""
        noise = _normal_like(x_start) if noise is None else noise
        return (
            extract(self.sqrt_alphas_cumprod, t, x_start) * x_start
            + extract(self.sqrt_one_minus_alphas_cumprod, t, x_start) * noise
        )

    def q_posterior_mean_variance(self, x_start, x_t, t):
        """q(x_{t-1} | x_t, x_0) (DDPM, eq. 6 and 7).

        Returns (mean, variance, log_variance), each of x_t's shape; at t = 0 the variance is 0 and
        its logarithm that of t = 1.
        """
        return (
            extract(self.posterior_mean_coef1, t, x_t) * x_start + extract(self.posterior_mean_coef2, t, x_t) * x_t,
            extract(self.posterior_variance, t, x_t),
            extract(self.posterior_log_variance_clipped, t, x_t),
        )

    def p_mean_variance(self, model, x, t, clip_denoised=True, model_kwargs=None):
        """p(x_{t-1} | x_t) by the network.

        x: (N, C, H, W) network input. t: (N,) time step indices.
        clip_denoised: clip the predicted mask to [-1, 1].
        Returns a dict: mean, variance, log_variance, pred_xstart (the predicted mask) and cal (the
        calibration mask), each (N, K, H, W).
        """
        out, cal = self._apply(model, x, t, model_kwargs)
        return {**self._reverse_step(out, self._mask(x), t, clip_denoised), "cal": cal}

    def _image(self, x):
        """The image's channels of a network input."""
        return x[:, : -self.mask_channels]

    def _mask(self, x):
        """The mask's channels of a network input."""
        return x[:, -self.mask_channels :]

    def _apply(self, model, x, t, model_kwargs):
        """The network at its own time steps: those of the whole process, scaled where asked."""
        network_t = runtime.to_tensor(np.array(self.timestep_map))[t]
        if self.rescale_timesteps:
            network_t = network_t.cast(x.dtype) * runtime.scalar(1000.0 / self.original_num_steps)
        out, cal = as_prediction(model(x, network_t, **(model_kwargs or {})))
        expected = self.mask_channels * (1 + self.learns_sigma)
        if out.shape[1] != expected:
            raise ValueError(
                f"the network's output has {out.shape[1]} channels, the diffusion expects "
                f"{expected}: learn_sigma or mask_channels of the two differ"
            )
        return out, cal

    def _reverse_step(self, out, x_t, t, clip_denoised):
        """Mean, variance, log_variance and pred_xstart from the network's output at x_t."""
        prediction = out[:, : self.mask_channels]
        variance, log_variance = self._variance(out, x_t, t)
        pred_xstart = self._predict_xstart(prediction, x_t, t)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1.0, 1.0)
        if self.model_mean_type == ModelMeanType.PREVIOUS_X:
            mean = prediction
        else:
            mean = self.q_posterior_mean_variance(pred_xstart, x_t, t)[0]
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": pred_xstart}

    def _variance(self, out, x_t, t):
        """Variance of the reverse step and its logarithm (Improved DDPM, arXiv:2102.09672, eq. 15).

        The learned share is not limited, as in the original. A short training puts it far above 1, which in fewer
        steps than trained spoils the ancestral sampler's last ones (logs/samplers-brats2021-64px/README.md).
        """
        smallest = extract(self.posterior_log_variance_clipped, t, x_t)
        if self.model_var_type == ModelVarType.FIXED_SMALL:
            return extract(self.posterior_variance, t, x_t), smallest
        if self.model_var_type == ModelVarType.FIXED_LARGE:
            return (extract(self.fixed_large_variance, t, x_t), extract(self.fixed_large_log_variance, t, x_t))
        log_variance = out[:, self.mask_channels :]
        if self.model_var_type == ModelVarType.LEARNED_RANGE:
            share = (log_variance + 1.0) / 2.0  # the network says -1 for the smallest, 1 for the largest
            log_variance = share * extract(self.log_betas, t, x_t) + (1.0 - share) * smallest
        return jt.exp(log_variance), log_variance

    def _predict_xstart(self, prediction, x_t, t):
        """x_0 from what the network predicts (DDPM, eq. 4 and 7 solved for x_0)."""
        if self.model_mean_type == ModelMeanType.START_X:
            return prediction
        if self.model_mean_type == ModelMeanType.EPSILON:
            return (
                extract(self.sqrt_recip_alphas_cumprod, t, x_t) * x_t
                - extract(self.sqrt_recipm1_alphas_cumprod, t, x_t) * prediction
            )
        return (
            extract(self.recip_posterior_mean_coef1, t, x_t) * prediction
            - extract(self.posterior_mean_coef_ratio, t, x_t) * x_t
        )

    def p_sample(self, model, x, t, noise=None, clip_denoised=True, model_kwargs=None):
        """One ancestral step (DDPM, algorithm 2).

        x:     (N, C, H, W) network input at t. t: (N,) time step indices.
        noise: (N, K, H, W) standard normal, unused where t = 0; None draws it anew.
        Returns a dict: sample (x_{t-1}), pred_xstart and cal, each (N, K, H, W).
        """
        out = self.p_mean_variance(model, x, t, clip_denoised, model_kwargs)
        noise = _normal_like(out["mean"]) if noise is None else noise
        scale = extract(self.adds_noise, t, out["mean"]) * jt.exp(0.5 * out["log_variance"])
        return {"sample": out["mean"] + scale * noise, "pred_xstart": out["pred_xstart"], "cal": out["cal"]}

    def ddim_sample(self, model, x, t, noise=None, clip_denoised=True, model_kwargs=None, eta=0.0):
        """One DDIM step (Song et al. 2021, arXiv:2010.02502, eq. 12); as `p_sample`.

        eta: 0 (deterministic, the noise is unused) to 1 (ancestral). Raises `UserError` outside.
        """
        out = self.p_mean_variance(model, x, t, clip_denoised, model_kwargs)
        x_t = self._mask(x)
        noise = _normal_like(x_t) if noise is None else noise
        xstart_coef, x_t_coef, sigma = (extract(table, t, x_t) for table in ddim_coefficients(self, eta))
        sample = xstart_coef * out["pred_xstart"] + x_t_coef * x_t + sigma * noise
        return {"sample": sample, "pred_xstart": out["pred_xstart"], "cal": out["cal"]}

    def p_sample_loop_known(
        self, model, shape, img, noise=None, step_noise=None, clip_denoised=True, model_kwargs=None, progress=False
    ):
        """Sample masks for images by the ancestral sampler, over all steps of this process.

        model:      the network, in eval mode.
        shape:      not read, the image decides; it keeps the place that it has in the original.
        img:        (N, C, H, W), the image's channels and last K that are not read.
        noise:      (N, K, H, W), x_T; None draws it anew.
        step_noise: function of a step's index in the whole process (int, `timestep_map`) to its noise
                    (N, K, H, W), called once for each step, descending; None draws it anew.
        clip_denoised: clip the predicted mask to [-1, 1] in each step. progress: show a progress bar.
        Returns (sample, x_noisy, img, cal, cal_out): the sampled mask (N, K, H, W), the first network
        input, `img`, the calibration mask and its blend with the sample (`blend_calibration`).
        """

        def loop(x_noisy):
            return self.p_sample_loop_progressive(
                model, shape, x_noisy, step_noise, clip_denoised, model_kwargs, progress
            )

        return self._sample_known(loop, img, noise)

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
        """As `p_sample_loop_known` by DDIM. eta: 0 (deterministic) to 1 (ancestral)."""

        def loop(x_noisy):
            return self.ddim_sample_loop_progressive(
                model, shape, x_noisy, step_noise, clip_denoised, model_kwargs, progress, eta
            )

        return self._sample_known(loop, img, noise)

    def p_sample_loop_progressive(
        self, model, shape, noise, step_noise=None, clip_denoised=True, model_kwargs=None, progress=False
    ):
        """Yield the dict of `p_sample` after each step; arguments as of `p_sample_loop_known`, but
        noise is the first network input (N, C, H, W): the image's channels and last x_T."""

        def step(x, t, fresh):
            return self.p_sample(model, x, t, fresh, clip_denoised, model_kwargs)

        return self._sample_loop(step, noise, step_noise, progress)

    def ddim_sample_loop_progressive(
        self, model, shape, noise, step_noise=None, clip_denoised=True, model_kwargs=None, progress=False, eta=0.0
    ):
        """As `p_sample_loop_progressive`, by DDIM."""

        def step(x, t, fresh):
            return self.ddim_sample(model, x, t, fresh, clip_denoised, model_kwargs, eta)

        return self._sample_loop(step, noise, step_noise, progress)

    def _sample_known(self, loop, img, noise):
        """What `p_sample_loop_known` returns, of a loop(first network input (N, C, H, W))."""
        noise = _normal_like(self._mask(img)) if noise is None else noise.cast(img.dtype)
        x_noisy = jt.concat([self._image(img), noise], dim=1)  # (N, C, H, W)
        for out in loop(x_noisy):
            final = out
        cal = final["cal"]
        blended = None if cal is None else blend_calibration(final["sample"], cal)
        return final["sample"], x_noisy, img, cal, blended

    def _sample_loop(self, step, x, step_noise, progress):
        """Yield step(x, t, noise) for t = T - 1 to 0, with the mask in x replaced by each sample."""
        for index in tqdm(range(self.num_timesteps - 1, -1, -1), disable=not progress, unit="step"):
            with runtime.no_grad():
                t = runtime.to_tensor(np.full(x.shape[0], index))
                fresh = None if step_noise is None else step_noise(self.timestep_map[index]).cast(x.dtype)
                out = step(x, t, fresh)
                x = jt.concat([self._image(x), out["sample"]], dim=1)  # (N, C, H, W)
            jt.sync([x, *out.values()])  # else the graph of all steps grows
            yield out

    def training_losses_segmentation(self, model, classifier, x_start, t, model_kwargs=None, noise=None):
        """The terms of the training objective.

        model:      the network. classifier: not read; it keeps the place that it has in the original.
        x_start:    (N, C, H, W), the image's channels and last the mask's, above 0 where it holds.
        t:          (N,) time step indices, 0 to T - 1.
        noise:      (N, K, H, W) standard normal; None draws it anew.
        Returns (terms, model_output): a dict of (N,) tensors, means over channels and pixels: loss; loss_cal
        (squared error of the calibration mask); with a squared-error objective loss_diff; and vb (bits per
        pixel) where the variational bound takes part; and the network's prediction (N, K, H, W).
        """
        mask = (self._mask(x_start) > 0).cast(x_start.dtype)
        noise = _normal_like(mask) if noise is None else noise
        x_t = self.q_sample(mask, t, noise)
        out, cal = self._apply(model, jt.concat([self._image(x_start), x_t], dim=1), t, model_kwargs)
        prediction = out[:, : self.mask_channels]
        terms = {} if cal is None else {"loss_cal": mean_flat((mask - cal) ** 2)}
        if not self.loss_type.is_vb():
            terms["loss_diff"] = mean_flat((self._target(mask, x_t, t, noise) - prediction) ** 2)
            # The bound trains the variance alone (Improved DDPM, section 3.1).
            out = jt.concat([prediction.detach(), out[:, self.mask_channels :]], dim=1)
        if self.loss_type.is_vb() or self.learns_sigma:
            steps = self.num_timesteps
            scales = {LossType.RESCALED_MSE: steps / 1000.0, LossType.RESCALED_KL: steps}
            terms["vb"] = self._vb_term(out, mask, x_t, t) * runtime.scalar(scales.get(self.loss_type, 1.0))
        terms["loss"] = sum(terms[name] for name in ("loss_diff", "vb") if name in terms)
        return terms, prediction

    def _target(self, x_start, x_t, t, noise):
        """What the network should predict."""
        if self.model_mean_type == ModelMeanType.PREVIOUS_X:
            return self.q_posterior_mean_variance(x_start, x_t, t)[0]
        return x_start if self.model_mean_type == ModelMeanType.START_X else noise

    def _vb_term(self, out, x_start, x_t, t):
        """The step's term of the variational bound, (N,) in bits per pixel (DDPM, eq. 5): the decoder's
        negative log-likelihood at t = 0, else the divergence of p from the posterior."""
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start, x_t, t)
        step = self._reverse_step(out, x_t, t, clip_denoised=False)
        divergence = mean_flat(normal_kl(true_mean, true_log_variance, step["mean"], step["log_variance"]))
        decoder = -mean_flat(
            discretized_gaussian_log_likelihood(x_start, means=step["mean"], log_scales=0.5 * step["log_variance"])
        )
        return jt.where(t == 0, decoder, divergence) / runtime.scalar(math.log(2.0))


def total_loss(terms, weights):
    """The number to minimise: mean of loss * weights + 10 loss_cal.

    terms: of `training_losses_segmentation`. weights: (N,) of `ScheduleSampler.sample`.
    """
    loss = terms["loss"] * weights.cast(terms["loss"].dtype)
    if "loss_cal" in terms:
        loss = loss + CALIBRATION_WEIGHT * terms["loss_cal"]
    return mean_last(loss)


def blend_calibration(sample, cal):
    """The calibration mask blended with the sampled mask, each case's each channel by itself, in [0, 1].

    sample, cal: (N, K, H, W); cal in [0, 1]. Where their Dice (of the sample's positive pixels)
    is below 0.65 the sample counts for a quarter, on top of cal; else both count half. Two empty
    masks agree.
    """
    positive = (sample > 0).cast(sample.dtype)
    common, together = (
        mean_flat(value.reshape(-1, 1, *value.shape[2:]))  # (N, K, H, W) -> (N * K,)
        for value in (positive * cal, positive + cal)
    )
    differ = (2.0 * common < AGREEMENT * together).reshape(*sample.shape[:2], 1, 1)
    return jt.where(differ, cal + 0.25 * sample, 0.5 * cal + 0.5 * sample).clamp(0.0, 1.0)


def _normal_like(x):
    """Fresh standard normal values, of no seed, in the type, device and shape of x."""
    return runtime.to_tensor(np.random.default_rng().standard_normal(x.shape), dtype=str(x.dtype))

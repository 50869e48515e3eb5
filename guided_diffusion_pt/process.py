"""A process on tensors: it noises masks, reads the network's prediction, and gives the training objective.

Only the mask is diffused. It has K channels, one for each label. Shapes:

    network input              (N, C, H, W), the channels of the image, then the K of the noised mask
    mask, noise, prediction    (N, K, H, W)

The network is called as `model(x, t, **model_kwargs) -> (out, cal)`: out is its prediction, with K more channels if
the variance is learned; cal is the calibration mask in (0, 1), or None for a network without one.
"""

import numpy as np
import torch as th

from guided_diffusion_core.diffusion.process import xstart_coefficients
from guided_diffusion_core.diffusion.schedule import ModelVarType
from guided_diffusion_core.networks.family import as_prediction
from guided_diffusion_pt import runtime
from guided_diffusion_pt.nn import mean_flat, per_case


class ProcessTensors:
    """The methods of a `guided_diffusion_core.diffusion.process.Process` that work on tensors.

    A process of this backend inherits these methods, and a process in numbers from the core. The numbers take the type
    and device of the tensors that they are multiplied with.

    mask_channels: K.
    """

    mask_channels = 1

    def q_sample(self, x_start, t, noise=None):
        """Return a draw of q(x_t | x_0): x_t = a x_0 + b noise, with (a, b) of the process.

        x_start: x_0, (N, K, H, W).
        t:       (N,) times.
        noise:   standard normal values of x_0's shape; None draws them.
        """
        noise = normal_like(x_start) if noise is None else noise
        return _combined(self.mix(time_array(t)), x_start, noise)

    def training_losses_segmentation(self, model, classifier, x_start, t, model_kwargs=None, noise=None):
        """Return (terms, prediction) of the training objective.

        model:        the network.
        classifier:   not read; it is an argument of the original.
        x_start:      (N, C, H, W), the channels of the image, then those of the mask, which is above 0 inside.
        t:            (N,) times, such as indices of time steps.
        model_kwargs: dict of further arguments of the network.
        noise:        (N, K, H, W) standard normal; None draws it.

        terms is a dict of (N,) tensors, means over channels and pixels:

            loss       the objective
            loss_cal   squared error of the calibration mask, if the network has one
            loss_diff  squared error of the prediction, with a squared-error objective
            vb         the variational bound in bits per pixel, if it is part of the objective

        prediction is that of the network, (N, K, H, W).
        """
        t = time_array(t)
        image = self._image(x_start)
        mask = (self._mask(x_start) > 0).to(x_start.dtype)
        noise = normal_like(mask) if noise is None else noise
        x_t = self.q_sample(mask, t, noise)
        out, cal = self._apply(on_image(model, image, model_kwargs), x_t, t)
        terms = {} if cal is None else {"loss_cal": mean_flat((mask - cal) ** 2)}
        return {**terms, **self._objective(out, mask, x_t, t, noise)}, out[:, : self.mask_channels]

    def _objective(self, out, mask, x_t, t, noise):
        """Return the terms that train the prediction; their `loss` is minimised."""
        squared = mean_flat((self._target(mask, t, noise) - out[:, : self.mask_channels]) ** 2)
        return {"loss_diff": squared, "loss": squared}

    def _target(self, x_start, t, noise):
        """Return the target of the network's prediction: c x_0 + d noise, with (c, d) of the process."""
        return _combined(self.target(t), x_start, noise)

    def _predict_xstart(self, prediction, x_t, t):
        """Return x_0 from the network's prediction at x_t."""
        return _combined(xstart_coefficients(self, t), x_t, prediction)

    def _image(self, x):
        """Return the image's channels of a network input."""
        return x[:, : -self.mask_channels]

    def _mask(self, x):
        """Return the mask's channels of a network input."""
        return x[:, -self.mask_channels :]

    def _apply(self, evaluate, x_t, t, before=None):
        """Return the network's (out, cal) at times t (N,). evaluate and before are those of `Solver.step`."""
        times = self.network_time(t)
        # Whole times stay integers, because a network may treat integers and fractions in different ways.
        network_t = runtime.to_tensor(times).to(x_t.device)
        if times.dtype.kind == "f":
            network_t = network_t.to(x_t.dtype)
        out, cal = as_prediction(evaluate(x_t, network_t, before))
        expected = self.mask_channels * (1 + (self.model_var_type == ModelVarType.LEARNED_RANGE))
        if out.shape[1] != expected:
            raise ValueError(
                f"the network's output has {out.shape[1]} channels, the diffusion expects "
                f"{expected}: learn_sigma or mask_channels of the two differ"
            )
        return out, cal


def on_image(model, image, model_kwargs=None):
    """Return the function evaluate(x_t, t, before) that calls a network on an image (N, C - K, H, W) and x_t."""

    def evaluate(x_t, t, before):
        return model(th.cat([image, x_t], dim=1), t, **(model_kwargs or {}))  # (N, C, H, W)

    return evaluate


# log variance = v log beta_t + (1 - v) log beta~_t (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15)
def learned_log_variance(channels, smallest, largest):
    """Return the logarithm of a learned variance.

    channels: output of the network, 2 v - 1: -1 for the smallest logarithm and 1 for the largest.
    smallest: log beta~_t, that of the posterior's variance.
    largest:  log beta_t.

    v is not limited, as in the original. After a short training it is far above 1. That spoils the last steps of the
    ancestral sampler if it takes fewer steps than the training had (logs/samplers-brats2021-64px/README.md).
    """
    share = (channels + 1.0) / 2.0
    return share * largest + (1.0 - share) * smallest


def time_array(t):
    """Return times as numpy. t: a tensor or numpy."""
    return t if isinstance(t, np.ndarray) else runtime.to_numpy(t)


def normal_like(x):
    """Return new standard normal values without a seed, in the type, device and shape of x."""
    return runtime.to_tensor(np.random.default_rng().standard_normal(tuple(x.shape))).to(x)


def _combined(factors, first, second):
    """Return factors[0] * first + factors[1] * second.

    factors: two arrays (N,), one number for each case. A product with only zeros or only ones is not computed.
    """
    terms = []
    for factor, value in zip(factors, (first, second)):
        if (factor == 1).all():
            terms.append(value)
        elif factor.any():
            terms.append(per_case(factor, value) * value)
    return sum(terms[1:], start=terms[0])

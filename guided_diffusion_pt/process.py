"""What tensors do with a process: noise a mask, read the network's prediction, and train on it.

Only the mask is diffused, K channels of it, one for each label: a network input is (N, C, H, W), the image's
channels and last those of the noised mask; mask, noise and predictions are (N, K, H, W). The network is called
`model(x, t, **model_kwargs) -> (out, cal)`: its prediction, K more channels for the variance where that is learned,
and the calibration mask in (0, 1), or None for a network without one.
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

    A process of this backend inherits them, and a process in numbers from the core. Its numbers take the type and
    device of the tensor that they meet. Attribute: mask_channels, K.
    """

    mask_channels = 1

    def q_sample(self, x_start, t, noise=None):
        """Return a draw of q(x_t | x_0) at times t (N,), of x_start's shape.

        noise: standard normal values of that shape; None draws them.
        """
        noise = normal_like(x_start) if noise is None else noise
        return _combined(self.mix(time_array(t)), x_start, noise)

    def training_losses_segmentation(self, model, classifier, x_start, t, model_kwargs=None, noise=None):
        """Return (terms, prediction) of the training objective.

        model:      the network. classifier: not read; it keeps the place that it has in the original.
        x_start:    (N, C, H, W), the image's channels and last the mask's, above 0 where it holds.
        t:          (N,) times, such as indices of time steps.
        noise:      (N, K, H, W) standard normal; None draws it.
        terms is a dict of (N,) tensors, means over channels and pixels: loss; loss_cal (squared error of the
        calibration mask); with a squared-error objective loss_diff; and vb (bits per pixel) where the variational
        bound takes part. prediction is the network's, (N, K, H, W).
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
        """Return what the network should predict."""
        return _combined(self.target(t), x_start, noise)

    def _predict_xstart(self, prediction, x_t, t):
        """Return x_0 from what the network predicts at x_t."""
        return _combined(xstart_coefficients(self, t), x_t, prediction)

    def _image(self, x):
        """Return the image's channels of a network input."""
        return x[:, : -self.mask_channels]

    def _mask(self, x):
        """Return the mask's channels of a network input."""
        return x[:, -self.mask_channels :]

    def _apply(self, evaluate, x_t, t, before=None):
        """Return the network's (out, cal) at times t (N,); evaluate and before: as of `Solver.step`."""
        times = self.network_time(t)
        # whole numbers stay whole: the network tells both kinds apart
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
    """Return the function evaluate(x_t, t, before) of a network that sees an image (N, C - K, H, W) and x_t."""

    def evaluate(x_t, t, before):
        return model(th.cat([image, x_t], dim=1), t, **(model_kwargs or {}))  # (N, C, H, W)

    return evaluate


def learned_log_variance(channels, smallest, largest):
    """Return the logarithm of a learned variance (Improved DDPM, arXiv:2102.09672, eq. 15).

    channels: what the network says, -1 for the smallest logarithm and 1 for the largest.
    Its share is not limited, as in the original. A short training puts it far above 1, which in fewer steps than
    trained spoils the ancestral sampler's last ones (logs/samplers-brats2021-64px/README.md).
    """
    share = (channels + 1.0) / 2.0
    return share * largest + (1.0 - share) * smallest


def time_array(t):
    """Return times as numpy, which may be a tensor or numpy."""
    return t if isinstance(t, np.ndarray) else runtime.to_numpy(t)


def normal_like(x):
    """Return fresh standard normal values, of no seed, in the type, device and shape of x."""
    return runtime.to_tensor(np.random.default_rng().standard_normal(tuple(x.shape))).to(x)


def _combined(factors, first, second):
    """Return factors[0] first + factors[1] second; factors: arrays (N,), one number for each case."""
    terms = []
    for factor, value in zip(factors, (first, second)):
        if (factor == 1).all():
            terms.append(value)
        elif factor.any():
            terms.append(per_case(factor, value) * value)
    return sum(terms[1:], start=terms[0])

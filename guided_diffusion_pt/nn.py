"""Layers and small functions that the networks and the training loop are made of."""

import torch as th
import torch.nn as nn
from torch.nn import functional as F

from guided_diffusion_core.networks.embedding import timestep_frequencies
from guided_diffusion_core.networks.medsegdiff.plan import GROUP_NORM_GROUPS
from guided_diffusion_pt import dist_util, runtime
from guided_diffusion_pt.kernels import group_norm, winograd
from guided_diffusion_pt.recompute import is_recomputing


class Network(nn.Module):
    """A network of any family; it is built from its plan.

    Its forward pass takes x (N, in_channels, S, S), the image's channels and last those of the noised mask, the time
    steps (N,), and `conditioning` of `condition` where that is known; it returns the prediction (N, out_channels, S,
    S), or a pair of it and a calibration mask (N, mask_channels, S, S).
    """

    def condition(self, image):
        """Return the tensors, a tuple, that depend on the image (N, C, S, S) alone; None if there are none."""
        return None


class SiLU(nn.Module):
    """x * sigmoid(x), any shape (Elfwing et al. 2018, arXiv:1702.03118, eq. 1)."""

    def forward(self, x):
        return group_norm.silu(x)


class LeakyReLU(nn.Module):
    """x where positive, else 0.01 x; any shape."""

    def forward(self, x):
        return F.leaky_relu(x, 0.01)


class GroupNorm32(nn.GroupNorm):
    """Group normalisation of (N, C, ...) over C / num_groups channels and all positions
    (Wu & He 2018, arXiv:1803.08494, eq. 1), with a weight and a bias per channel."""

    def __init__(self, num_groups, num_channels, eps=1e-5):
        super().__init__(num_groups, num_channels, eps=eps)

    def forward(self, x):
        values = runtime.widened(x)
        if group_norm.serves(values):
            return group_norm.group_norm(values, self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)
        return super().forward(values).to(x.dtype)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of (N, C, H, W) (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1);
    the running variance is the unbiased one. Training needs more than one value per channel. Of several
    processes the statistics are those of their examples together."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__(num_features, eps=eps, momentum=momentum)

    def forward(self, x):
        values = runtime.widened(x)
        if self.training and dist_util.group().size > 1:
            result = self._over_processes(values)
        elif self.training and is_recomputing():  # a batch counts once
            means = self.running_mean.clone()
            variances = self.running_var.clone()
            result = F.batch_norm(
                values, means, variances, self.weight, self.bias, training=True, momentum=self.momentum, eps=self.eps
            )
        else:
            result = super().forward(values)
        return result.to(x.dtype)

    def _over_processes(self, x):
        """The normalised batch; torch's own SyncBatchNorm runs on GPUs alone."""
        processes = dist_util.group().size
        count = processes * x.numel() // x.shape[1]
        mean = dist_util.all_reduce(x.mean((0, 2, 3), keepdim=True)) / processes  # (1, C, 1, 1)
        centred = x - mean
        variance = dist_util.all_reduce(centred.square().mean((0, 2, 3), keepdim=True)) / processes
        if not is_recomputing():  # a batch counts once
            with th.no_grad():
                self.running_mean.lerp_(mean.reshape(-1), self.momentum)
                self.running_var.lerp_(variance.reshape(-1) * (count / (count - 1)), self.momentum)
                self.num_batches_tracked.add_(1)
        scale = self.weight.reshape(1, -1, 1, 1) / (variance + self.eps).sqrt()
        return centred * scale + self.bias.reshape(1, -1, 1, 1)


class Conv3x3(nn.Conv2d):
    """3x3 convolution with a border of zeros: (N, channels, H, W) to (N, out_channels, H, W)."""

    def __init__(self, channels, out_channels):
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x):
        return winograd.conv2d(x, self.weight, self.bias)


class Dropout(nn.Module):
    """Inverted dropout whose masks come from the noise tape (`set_dropout_noise`).

    p: rate, 0 to below 1. Input (N, C, ...), one mask element per input element.
    Raises RuntimeError in training when no noise is set.
    """

    def __init__(self, p=0.5):
        super().__init__()
        self.p = p
        self.noise = None

    def mask_shape(self, x):
        """Shape of one example's mask."""
        return tuple(x.shape[1:])

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        if self.noise is None:
            raise RuntimeError("dropout in training mode has no noise: call nn.set_dropout_noise(model, ...) first")
        tape, site, step, slots = self.noise
        mask = tape.keep_mask(site, self.mask_shape(x), self.p, step=step, cases=slots)
        return x * runtime.to_tensor(mask, dtype=runtime.precision())


class Dropout2d(Dropout):
    """Dropout of whole channels (Tompson et al. 2015, arXiv:1411.4280): one mask element a channel."""

    def mask_shape(self, x):
        """Shape of one example's mask."""
        return (x.shape[1],) + (1,) * (len(x.shape) - 2)


def set_dropout_noise(model, tape, step, slots):
    """Tell every dropout layer of `model` where on the tape its next masks lie.

    tape:  NoiseTape. step: int, the optimizer step.
    slots: the examples' places in the whole batch, one per row of the next forward pass.
    """
    for name, module in model.named_modules():
        if isinstance(module, Dropout):
            module.noise = (tape, f"dropout/{name}", step, tuple(slots))


class MaxPool2d(nn.Module):
    """Largest value of each 2x2 window: (N, C, H, W) to (N, C, H/2, W/2)."""

    def forward(self, x):
        return F.max_pool2d(x, 2)


class AvgPool2d(nn.Module):
    """Mean of each 2x2 window: (N, C, H, W) to (N, C, H/2, W/2)."""

    def forward(self, x):
        return F.avg_pool2d(x, 2)


class BilinearUpsample(nn.Module):
    """Bilinear upsampling of (N, C, H, W) by a whole factor, pixel centres aligned."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)


def nearest_upsample(x):
    """Repeat each pixel 2x2: (N, C, H, W) to (N, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def network_format(x, channels):
    """x (N, C, H, W) in the order in memory that is quickest: channels last without gradients, and with them if
    Winograd's algorithm serves layers of this width; backward, oneDNN takes up to three times as long for it.

    channels: width of the layers that it goes through.
    """
    last = not th.is_grad_enabled() or winograd.serves(x, channels)
    return x.contiguous(memory_format=th.channels_last if last else th.contiguous_format)


def normalization(channels):
    """The group normalisation of the network: 32 groups. channels: a multiple of 32."""
    return GroupNorm32(GROUP_NORM_GROUPS, channels)


def batched_matmul(a, b):
    """(B, n, k) times (B, k, m): (B, n, m)."""
    return th.bmm(a, b)


def softmax(x):
    """Softmax over the last axis; any shape."""
    return th.softmax(runtime.widened(x), dim=-1).to(x.dtype)


def timestep_embedding(timesteps, dim, max_period=10000):
    """Sinusoidal embedding of time steps (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    timesteps: (N,) whole or fractional steps, 0 to about 1000. dim: even width.
    Returns (N, dim): the cosines, then the sines.
    """
    frequencies = runtime.to_tensor(timestep_frequencies(dim, runtime.precision(), max_period))
    angles = timesteps[:, None].to(frequencies.dtype) * frequencies[None]  # (N, dim / 2)
    return th.cat([th.cos(angles), th.sin(angles)], dim=1)


def per_case(values, like):
    """Return numbers, float64 numpy (N,), one for each case, in the type, device and shape of `like` (N, ...)."""
    values = runtime.to_tensor(values).to(like)
    return values.reshape(-1, *[1] * (len(like.shape) - 1)).expand(like.shape)


def channel_mean(x):
    """Mean over all positions: (N, C, H, W) to (N, C, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


def mean_flat(tensor):
    """Mean over all axes but the first: (N, ...) to (N,)."""
    return tensor.mean(dim=list(range(1, len(tensor.shape))))


def update_ema(target_params, source_params, rate=0.99):
    """target = rate * target + (1 - rate) * source, in place, for each pair of the two lists."""
    with th.no_grad():
        for target, source in zip(target_params, source_params):
            target.mul_(rate).add_(source, alpha=1 - rate)

"""Layers and small functions of the networks and the training loop."""

import itertools
from weakref import WeakValueDictionary

import torch as th
import torch.nn as nn
from torch.nn import functional as F

from guided_diffusion_core.networks.embedding import timestep_frequencies
from guided_diffusion_core.networks.medsegdiff.plan import GROUP_NORM_GROUPS
from guided_diffusion_core.system import devices
from guided_diffusion_pt import dist_util, runtime
from guided_diffusion_pt.kernels import group_norm, winograd
from guided_diffusion_pt.recompute import is_recomputing

# The tensors of `_frequencies`, by its arguments.
_FREQUENCIES = {}
# The dropout layers by their numbers, for compiled networks.
_LAYERS = WeakValueDictionary()
_NUMBERS = itertools.count()


class Network(nn.Module):
    """A network of any family, which is built from its plan.

    The forward pass takes

        x:            (N, in_channels, S, S), the channels of the image, then those of the noised mask.
        timesteps:    (N,), whole or fractional.
        conditioning: the result of `condition`, where it is known already.

    It returns the prediction (N, out_channels, S, S), or a pair of that and a calibration mask (N, mask_channels,
    S, S).
    """

    def condition(self, image):
        """Return a tuple of the tensors that depend only on the image (N, C, S, S), or None if there are none."""
        return None


class SiLU(nn.Module):
    """The activation x * sigmoid(x), any shape (Elfwing et al. 2018, arXiv:1702.03118, eq. 1)."""

    def forward(self, x):
        return group_norm.silu(x)


class LeakyReLU(nn.Module):
    """x where it is positive, otherwise 0.01 x; any shape."""

    def forward(self, x):
        return F.leaky_relu(x, 0.01)


class GroupNorm32(nn.GroupNorm):
    """Group normalisation of x (N, C, ...): (x - mean) / sqrt(variance + eps) * weight + bias (Wu & He 2018,
    arXiv:1803.08494, eq. 1). It computes in float32 at least.

    num_groups:   groups; mean and variance are those of the C / num_groups channels and all positions of a group.
    num_channels: C; each channel has a weight and a bias.
    eps:          added to the variance.
    """

    def __init__(self, num_groups, num_channels, eps=1e-5):
        super().__init__(num_groups, num_channels, eps=eps)

    def forward(self, x):
        values = runtime.widened(x)
        if group_norm.serves(values):
            return group_norm.group_norm(values, self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)
        return super().forward(values).to(x.dtype)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of x (N, C, H, W): (x - mean) / sqrt(variance + eps) * weight + bias (Ioffe & Szegedy 2015,
    arXiv:1502.03167, algorithm 1).

    num_features: C; each channel has a weight, a bias and its statistics.
    eps:          added to the variance.
    momentum:     weight of the new batch in the running statistics.

    Training takes the statistics of the batch, and needs more than one value per channel. The batch is that of all
    processes. Sampling takes the running statistics, whose variance is the unbiased one.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        super().__init__(num_features, eps=eps, momentum=momentum)

    def forward(self, x):
        values = runtime.widened(x)
        if self.training and dist_util.group().size > 1:
            result = self._over_processes(values)
        elif self.training and is_recomputing():
            # A batch counts once: the repeated forward pass updates copies of the running statistics.
            means = self.running_mean.clone()
            variances = self.running_var.clone()
            result = F.batch_norm(
                values, means, variances, self.weight, self.bias, training=True, momentum=self.momentum, eps=self.eps
            )
        else:
            result = super().forward(values)
        return result.to(x.dtype)

    def _over_processes(self, x):
        """Normalise by the statistics of all processes. torch's own SyncBatchNorm runs only on GPUs."""
        processes = dist_util.group().size
        count = processes * x.numel() // x.shape[1]  # values per channel
        mean = dist_util.all_reduce(x.mean((0, 2, 3), keepdim=True)) / processes  # (1, C, 1, 1)
        centred = x - mean
        variance = dist_util.all_reduce(centred.square().mean((0, 2, 3), keepdim=True)) / processes
        if not is_recomputing():  # a batch counts once
            with th.no_grad():
                self.running_mean.lerp_(mean.reshape(-1), self.momentum)
                unbiased = variance.reshape(-1) * (count / (count - 1))  # (C,)
                self.running_var.lerp_(unbiased, self.momentum)
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
    """Inverted dropout of x (N, C, ...), with one mask element per element of x (Srivastava et al. 2014).

    p: rate, 0 to below 1.

    The masks come from the noise tape (`set_dropout_noise`), so that both backends drop the same elements. The
    forward pass raises RuntimeError in training when no noise is set.
    """

    def __init__(self, p=0.5):
        super().__init__()
        self.p = p
        self.noise = None
        self.number = next(_NUMBERS)
        _LAYERS[self.number] = self

    def mask_shape(self, x):
        """Return the shape of the mask of one example."""
        return tuple(x.shape[1:])

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        shape = self.mask_shape(x)
        mask = _compiled_mask(x.detach(), self.number, shape) if th.compiler.is_compiling() else self._draw(shape)
        return x * mask

    def _draw(self, shape):
        """Draw a mask (N, *shape) from the tape."""
        if self.noise is None:
            raise RuntimeError("dropout in training mode has no noise: call nn.set_dropout_noise(model, ...) first")
        tape, site, step, slots = self.noise
        mask = tape.keep_mask(site, shape, self.p, step=step, cases=slots)
        return runtime.to_tensor(mask, dtype=runtime.precision())


_MASK_SCHEMA = "(Tensor x, int number, int[] shape) -> Tensor"


@th.library.custom_op("medsegdiff::dropout_mask", mutates_args=(), schema=_MASK_SCHEMA)
def _compiled_mask(x, number, shape):
    """Draw the mask (N, *shape) of a dropout layer for x (N, ...). A compiled network calls this as it stands here."""
    return _LAYERS[number]._draw(tuple(shape))


@_compiled_mask.register_fake
def _mask_like(x, number, shape):
    """Return what the compiler has to know of a mask."""
    return x.new_empty((x.shape[0], *shape), dtype=th.get_default_dtype())


class Dropout2d(Dropout):
    """Dropout of whole channels, with one mask element per channel (Tompson et al. 2015, arXiv:1411.4280)."""

    def mask_shape(self, x):
        """Return the shape of the mask of one example: (C, 1, ...)."""
        return (x.shape[1],) + (1,) * (len(x.shape) - 2)


def set_dropout_noise(model, tape, step, slots):
    """Tell every dropout layer of a model where its next masks lie on the noise tape.

    model: network with named modules; the name of a layer is part of the place.
    tape:  NoiseTape.
    step:  int, the optimizer step.
    slots: index in the whole batch of each example of the next forward pass.
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
    """Bilinear upsampling by a whole factor: (N, C, H, W) to (N, C, scale H, scale W).

    Pixels are areas: the corners of the image stay in place, not the centres of its corner pixels
    (`align_corners=False`).
    """

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)


def nearest_upsample(x):
    """Repeat each pixel 2x2: (N, C, H, W) to (N, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def network_format(x, channels):
    """Return x (N, C, H, W) in the order in memory that is fastest for the network.

    channels: width of the layers that x goes through.

    The channels come last on NVIDIA's GPUs, and without gradients. On a CPU with gradients they come last only if
    Winograd's algorithm serves layers of this width: oneDNN takes up to three times as long for that order in the
    backward pass.
    """
    last = _reads_channels_last(x) or not th.is_grad_enabled() or winograd.serves(x, channels)
    return x.contiguous(memory_format=th.channels_last if last else th.contiguous_format)


def kernel_format(network):
    """Return a network with the kernels of its convolutions in the order in memory that its device reads fastest."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _reads_channels_last(module.weight):
            module.to(memory_format=th.channels_last)
    return network


def _reads_channels_last(tensor):
    """Return whether the tensor's device convolves fastest with the channels last, as NVIDIA's GPUs do."""
    return tensor.device.type not in (devices.CPU, devices.MPS)


def normalization(channels):
    """Build the group normalisation of the network, with 32 groups. channels: a multiple of 32."""
    return GroupNorm32(GROUP_NORM_GROUPS, channels)


def batched_matmul(a, b):
    """Multiply matrices of a batch: (B, n, k) times (B, k, m) is (B, n, m)."""
    return th.bmm(a, b)


def softmax(x):
    """Return the softmax over the last axis; any shape."""
    return th.softmax(runtime.widened(x), dim=-1).to(x.dtype)


# cos(t f_i) and sin(t f_i) with f_i = max_period^(-2 i / dim), i < dim / 2 (Vaswani et al. 2017, arXiv:1706.03762,
# section 3.5)
def timestep_embedding(timesteps, dim, max_period=10000):
    """Return the sinusoidal embedding of time steps, (N, dim): the cosines, then the sines.

    timesteps:  (N,) whole or fractional steps, 0 to about 1000.
    dim:        even width of the embedding.
    max_period: steps of the longest period, divided by 2 pi.
    """
    frequencies = _frequencies(dim, runtime.precision(), max_period, timesteps.device)
    angles = timesteps[:, None].to(frequencies.dtype) * frequencies[None]  # (N, dim / 2)
    return th.cat([th.cos(angles), th.sin(angles)], dim=1)


@th.compiler.assume_constant_result
def _frequencies(dim, precision, max_period, device):
    """Return `timestep_frequencies` as a tensor on a device, which is kept there: no step copies it."""
    place = (dim, precision, max_period, device)
    if place not in _FREQUENCIES:
        _FREQUENCIES[place] = runtime.to_tensor(timestep_frequencies(dim, precision, max_period)).to(device)
    return _FREQUENCIES[place]


def per_case(values, like):
    """Spread one number per example over the example.

    values: numpy float64 (N,).
    like:   tensor (N, ...), whose type, device and shape the result has.
    """
    if (values == values[0]).all():
        values = like.new_full(values.shape, values[0])  # made on the device: no copy in a step of the sampler
    else:
        values = runtime.to_tensor(values).to(like)
    shape = (-1,) + (1,) * (len(like.shape) - 1)
    return values.reshape(shape).expand(like.shape)  # (N,) to (N, 1, ...) to the shape of `like`


def channel_mean(x):
    """Return the mean over all positions: (N, C, H, W) to (N, C, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


def mean_flat(tensor):
    """Return the mean over all axes but the first: (N, ...) to (N,)."""
    return tensor.mean(dim=list(range(1, len(tensor.shape))))


def update_ema(target_params, source_params, rate=0.99):
    """Update moving averages in place: target = rate * target + (1 - rate) * source.

    target_params, source_params: two lists of tensors of the same shapes.
    """
    with th.no_grad():
        # all tensors in one operator each: a GPU would wait for the starts of a thousand small ones
        th._foreach_mul_(target_params, rate)
        th._foreach_add_(target_params, source_params, alpha=1 - rate)

"""Layers and small functions of the networks and the training loop."""

from guided_diffusion_core.networks.embedding import timestep_frequencies
from guided_diffusion_core.networks.medsegdiff.plan import GROUP_NORM_GROUPS
from guided_diffusion_jt import dist_util, runtime
from guided_diffusion_jt.kernels import group_norm, matmul, winograd
from guided_diffusion_jt.kernels.sums import mean_last
from guided_diffusion_jt.recompute import is_recomputing
from guided_diffusion_jt.runtime import jt, nn


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

    def execute(self, x):
        return group_norm.silu(x)


class LeakyReLU(nn.Module):
    """x where it is positive, otherwise 0.01 x; any shape."""

    def execute(self, x):
        return jt.ternary(x > 0, x, x * runtime.scalar(0.01))


class GroupNorm32(nn.Module):
    """Group normalisation of x (N, C, ...): (x - mean) / sqrt(variance + eps) * weight + bias (Wu & He 2018,
    arXiv:1803.08494, eq. 1).

    num_groups:   groups; mean and variance are those of the C / num_groups channels and all positions of a group.
    num_channels: C; each channel has a weight and a bias.
    eps:          added to the variance.

    Jittor's own computes the variance as E[x^2] - E[x]^2, a difference of large numbers that loses digits. This one
    takes the mean first, then the variance of the differences.
    """

    def __init__(self, num_groups, num_channels, eps=1e-5):
        self.num_groups = num_groups
        self.eps = eps
        self.weight = jt.ones((num_channels,))
        self.bias = jt.zeros((num_channels,))

    def execute(self, x):
        return group_norm.group_norm(x, self.weight, self.bias, self.num_groups, self.eps)


class BatchNorm2d(nn.Module):
    """Batch normalisation of x (N, C, H, W): (x - mean) / sqrt(variance + eps) * weight + bias (Ioffe & Szegedy 2015,
    arXiv:1502.03167, algorithm 1).

    num_features: C; each channel has a weight, a bias and its statistics.
    eps:          added to the variance.
    momentum:     weight of the new batch in the running statistics.

    Training takes the statistics of the batch, and needs more than one value per channel. The batch is that of all
    processes. Sampling takes the running statistics, whose variance is the unbiased one.

    Jittor's own keeps the biased running variance, and its variance loses digits as that of its group norm does.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        self.eps = eps
        self.momentum = momentum
        self.weight = jt.ones((num_features,))
        self.bias = jt.zeros((num_features,))
        self.running_mean = jt.zeros((num_features,)).stop_grad()
        self.running_var = jt.ones((num_features,)).stop_grad()
        self.num_batches_tracked = jt.zeros((1,), dtype="int32").stop_grad()

    def execute(self, x):
        if not self.is_training():
            return self._normalize(x, self.running_mean.reshape(1, -1, 1, 1), self.running_var.reshape(1, -1, 1, 1))
        count = x.shape[0] * x.shape[2] * x.shape[3] * dist_util.group().size  # values per channel
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        mean = self._mean(x)
        variance = self._mean((x - mean) * (x - mean))
        if not is_recomputing():  # a batch counts once
            unbiased = variance.detach().reshape(-1) * runtime.scalar(count / (count - 1))  # (C,)
            self._track(mean.detach().reshape(-1), unbiased)
        return self._normalize(x, mean, variance)

    def _mean(self, x):
        """Return the mean over the examples and positions of all processes: (1, C, 1, 1)."""
        planes = mean_last(x.reshape(x.shape[0], x.shape[1], -1))  # (N, C, H W) to (N, C, 1)
        by_channel = planes.reshape(x.shape[0], x.shape[1]).transpose(1, 0)  # (C, N)
        mean = mean_last(by_channel).reshape(1, -1, 1, 1)
        processes = dist_util.group().size
        return dist_util.all_reduce(mean) / runtime.scalar(processes) if processes > 1 else mean

    def _track(self, mean, variance):
        """Move the running statistics towards those of a batch, both (C,)."""
        self.running_mean.update(self.running_mean + (mean - self.running_mean) * runtime.scalar(self.momentum))
        self.running_var.update(self.running_var + (variance - self.running_var) * runtime.scalar(self.momentum))
        self.num_batches_tracked.update(self.num_batches_tracked + 1)

    def _normalize(self, x, mean, variance):
        """Normalise x by a mean and a variance (1, C, 1, 1)."""
        scale = self.weight.reshape(1, -1, 1, 1) / jt.sqrt(variance + runtime.scalar(self.eps))
        return (x - mean) * scale + self.bias.reshape(1, -1, 1, 1)


class Conv3x3(nn.Conv2d):
    """3x3 convolution with a border of zeros: (N, channels, H, W) to (N, out_channels, H, W)."""

    def __init__(self, channels, out_channels):
        super().__init__(channels, out_channels, 3, padding=1)

    def execute(self, x):
        return winograd.conv2d(x, self.weight, self.bias)


class Conv1d(nn.Module):
    """Pointwise convolution: (N, in_channels, T) to (N, out_channels, T).

    in_channels:  channels of the input.
    out_channels: channels of the output.
    kernel_size:  1. The weight is (out_channels, in_channels, kernel_size), as in PyTorch.
    """

    def __init__(self, in_channels, out_channels, kernel_size):
        self.weight = jt.zeros((out_channels, in_channels, kernel_size))
        self.bias = jt.zeros((out_channels,))

    def execute(self, x):
        return nn.conv2d(x.unsqueeze(-1), self.weight.unsqueeze(-1), self.bias).squeeze(-1)


class Dropout(nn.Module):
    """Inverted dropout of x (N, C, ...), with one mask element per element of x (Srivastava et al. 2014).

    p: rate, 0 to below 1.

    The masks come from the noise tape (`set_dropout_noise`), so that both backends drop the same elements. The
    forward pass raises RuntimeError in training when no noise is set.
    """

    def __init__(self, p=0.5):
        self.p = p
        self.noise = None

    def mask_shape(self, x):
        """Return the shape of the mask of one example."""
        return tuple(x.shape[1:])

    def execute(self, x):
        if not self.is_training() or self.p == 0:
            return x
        if self.noise is None:
            raise RuntimeError("dropout in training mode has no noise: call nn.set_dropout_noise(model, ...) first")
        tape, site, step, slots = self.noise
        mask = tape.keep_mask(site, self.mask_shape(x), self.p, step=step, cases=slots)
        return x * runtime.to_tensor(mask, dtype=runtime.precision())


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
    """Largest value of each 2x2 window: (N, C, H, W) to (N, C, H/2, W/2).

    The first one of equal values gets the gradient, as in PyTorch. Jittor's own pooling refuses an input of 2x2
    pixels.
    """

    def execute(self, x):
        largest = x[:, :, 0::2, 0::2]
        for other in (x[:, :, 0::2, 1::2], x[:, :, 1::2, 0::2], x[:, :, 1::2, 1::2]):
            largest = jt.ternary(other > largest, other, largest)
        return largest


class AvgPool2d(nn.Module):
    """Mean of each 2x2 window: (N, C, H, W) to (N, C, H/2, W/2)."""

    def execute(self, x):
        n, channels, height, width = x.shape
        windows = x.reshape(n, channels, height // 2, 2, width // 2, 2)  # (N, C, H/2, rows, W/2, columns)
        return windows.mean((3, 5))


class BilinearUpsample(nn.Module):
    """Bilinear upsampling by a whole factor: (N, C, H, W) to (N, C, scale H, scale W).

    Pixels are areas: the corners of the image stay in place, not the centres of its corner pixels
    (`align_corners=False`).
    """

    def __init__(self, scale):
        self.scale = scale

    def execute(self, x):
        return nn.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)


def nearest_upsample(x):
    """Repeat each pixel 2x2: (N, C, H, W) to (N, C, 2H, 2W)."""
    return nn.interpolate(x, scale_factor=2, mode="nearest")


def network_format(x, channels):
    """Return x (N, C, H, W) as it is: Jittor has only one order in memory.

    channels: width of the layers that x goes through.
    """
    return x


def normalization(channels):
    """Build the group normalisation of the network, with 32 groups. channels: a multiple of 32."""
    return GroupNorm32(GROUP_NORM_GROUPS, channels)


def batched_matmul(a, b):
    """Multiply matrices of a batch: (B, n, k) times (B, k, m) is (B, n, m)."""
    return matmul.batched(a, b)


def softmax(x):
    """Return the softmax over the last axis; any shape."""
    # Jittor's own is another operator on CUDA.
    powers = jt.exp(x - jt.max(x, -1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# cos(t f_i) and sin(t f_i) with f_i = max_period^(-2 i / dim), i < dim / 2 (Vaswani et al. 2017, arXiv:1706.03762,
# section 3.5)
def timestep_embedding(timesteps, dim, max_period=10000):
    """Return the sinusoidal embedding of time steps, (N, dim): the cosines, then the sines.

    timesteps:  (N,) whole or fractional steps, 0 to about 1000.
    dim:        even width of the embedding.
    max_period: steps of the longest period, divided by 2 pi.
    """
    frequencies = runtime.to_tensor(timestep_frequencies(dim, runtime.precision(), max_period))
    angles = timesteps.unsqueeze(1).cast(frequencies.dtype) * frequencies.unsqueeze(0)  # (N, dim / 2)
    return jt.concat([jt.cos(angles), jt.sin(angles)], dim=1)


def per_case(values, like):
    """Spread one number per example over the example.

    values: numpy float64 (N,).
    like:   tensor (N, ...), whose type, device and shape the result has.
    """
    values = runtime.to_tensor(values, dtype=str(like.dtype))
    shape = (-1,) + (1,) * (len(like.shape) - 1)
    return values.reshape(shape).expand(like.shape)  # (N,) to (N, 1, ...) to the shape of `like`


def channel_mean(x):
    """Return the mean over all positions: (N, C, H, W) to (N, C, 1, 1)."""
    return mean_last(x.reshape(x.shape[0], x.shape[1], -1)).unsqueeze(-1)


def mean_flat(tensor):
    """Return the mean over all axes but the first: (N, ...) to (N,)."""
    return mean_last(tensor.reshape(tensor.shape[0], -1)).reshape(-1)


def update_ema(target_params, source_params, rate=0.99):
    """Update moving averages in place: target = rate * target + (1 - rate) * source.

    target_params, source_params: two lists of tensors of the same shapes.
    """
    with jt.no_grad():
        for target, source in zip(target_params, source_params):
            target.update(target * runtime.scalar(rate) + source * runtime.scalar(1 - rate))

"""Layers and small functions that the networks and the training loop are made of."""

from guided_diffusion_core.networks.embedding import timestep_frequencies
from guided_diffusion_core.networks.medsegdiff.plan import GROUP_NORM_GROUPS
from guided_diffusion_jt import dist_util, runtime
from guided_diffusion_jt.kernels import group_norm, winograd
from guided_diffusion_jt.recompute import is_recomputing
from guided_diffusion_jt.runtime import jt, nn

SUM_LENGTH = 256  # values per partial sum: one long float32 sum loses digits


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

    def execute(self, x):
        return group_norm.silu(x)


class LeakyReLU(nn.Module):
    """x where positive, else 0.01 x; any shape."""

    def execute(self, x):
        return jt.ternary(x > 0, x, x * runtime.scalar(0.01))


def mean_last(x):
    """Mean over the last axis, its sum in two stages where its length allows: (..., M) to (..., 1).

    Not by Jittor's mean: the gradient of that rounds 1 / M to float32, in float64 too.
    """
    length = x.shape[-1]
    if length % SUM_LENGTH == 0:
        x = x.reshape(*x.shape[:-1], length // SUM_LENGTH, SUM_LENGTH).sum(-1)
    return x.sum(-1, keepdims=True) / runtime.scalar(length)


class GroupNorm32(nn.Module):
    """Group normalisation of (N, C, ...) over C / num_groups channels and all positions
    (Wu & He 2018, arXiv:1803.08494, eq. 1), with a weight and a bias per channel.

    Jittor's own computes the variance as E[x^2] - E[x]^2, which cancels; this one takes the
    mean first and the variance of the differences.
    """

    def __init__(self, num_groups, num_channels, eps=1e-5):
        self.num_groups = num_groups
        self.eps = eps
        self.weight = jt.ones((num_channels,))
        self.bias = jt.zeros((num_channels,))

    def execute(self, x):
        if not jt.flags.use_cuda:
            return group_norm.group_norm(x, self.weight, self.bias, self.num_groups, self.eps)
        groups = x.reshape(x.shape[0], self.num_groups, -1)  # (N, G, C / G * positions)
        centred = groups - mean_last(groups)
        normal = centred / jt.sqrt(mean_last(centred * centred) + runtime.scalar(self.eps))
        per_channel = (1, -1) + (1,) * (len(x.shape) - 2)
        return normal.reshape(x.shape) * self.weight.reshape(per_channel) + self.bias.reshape(per_channel)


class BatchNorm2d(nn.Module):
    """Batch normalisation of (N, C, H, W) (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1);
    the running variance is the unbiased one. Training needs more than one value per channel. Of several
    processes the statistics are those of their examples together.

    Jittor's own keeps the biased running variance and cancels as its group norm does.
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
        count = x.shape[0] * x.shape[2] * x.shape[3] * dist_util.group().size
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        mean = self._mean(x)
        variance = self._mean((x - mean) * (x - mean))
        if not is_recomputing():  # a batch counts once
            self._track(mean.detach().reshape(-1), variance.detach().reshape(-1) * runtime.scalar(count / (count - 1)))
        return self._normalize(x, mean, variance)

    def _mean(self, x):
        """Mean over the examples and positions of all processes: (1, C, 1, 1)."""
        planes = mean_last(x.reshape(x.shape[0], x.shape[1], -1))  # (N, C, 1)
        mean = mean_last(planes.reshape(x.shape[0], x.shape[1]).transpose(1, 0)).reshape(1, -1, 1, 1)
        processes = dist_util.group().size
        return dist_util.all_reduce(mean) / runtime.scalar(processes) if processes > 1 else mean

    def _track(self, mean, variance):
        self.running_mean.update(self.running_mean + (mean - self.running_mean) * runtime.scalar(self.momentum))
        self.running_var.update(self.running_var + (variance - self.running_var) * runtime.scalar(self.momentum))
        self.num_batches_tracked.update(self.num_batches_tracked + 1)

    def _normalize(self, x, mean, variance):
        scale = self.weight.reshape(1, -1, 1, 1) / jt.sqrt(variance + runtime.scalar(self.eps))
        return (x - mean) * scale + self.bias.reshape(1, -1, 1, 1)


class Conv3x3(nn.Conv2d):
    """3x3 convolution with a border of zeros: (N, channels, H, W) to (N, out_channels, H, W)."""

    def __init__(self, channels, out_channels):
        super().__init__(channels, out_channels, 3, padding=1)

    def execute(self, x):
        return winograd.conv2d(x, self.weight, self.bias)


class Conv1d(nn.Module):
    """Pointwise convolution of (N, in, T): (N, out, T). The weight is (out, in, kernel_size)."""

    def __init__(self, in_channels, out_channels, kernel_size):
        self.weight = jt.zeros((out_channels, in_channels, kernel_size))
        self.bias = jt.zeros((out_channels,))

    def execute(self, x):
        return nn.conv2d(x.unsqueeze(-1), self.weight.unsqueeze(-1), self.bias).squeeze(-1)


class Dropout(nn.Module):
    """Inverted dropout whose masks come from the noise tape (`set_dropout_noise`).

    p: rate, 0 to below 1. Input (N, C, ...), one mask element per input element.
    Raises RuntimeError in training when no noise is set.
    """

    def __init__(self, p=0.5):
        self.p = p
        self.noise = None

    def mask_shape(self, x):
        """Shape of one example's mask."""
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
    """Largest value of each 2x2 window: (N, C, H, W) to (N, C, H/2, W/2).

    Of equal values the first one gets the gradient, as in PyTorch. Jittor's own pooling refuses
    an input of 2x2 pixels.
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
        return x.reshape(n, channels, height // 2, 2, width // 2, 2).mean((3, 5))


class BilinearUpsample(nn.Module):
    """Bilinear upsampling of (N, C, H, W) by a whole factor, pixel centres aligned."""

    def __init__(self, scale):
        self.scale = scale

    def execute(self, x):
        return nn.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)


def nearest_upsample(x):
    """Repeat each pixel 2x2: (N, C, H, W) to (N, C, 2H, 2W)."""
    return nn.interpolate(x, scale_factor=2, mode="nearest")


def network_format(x, channels):
    """x (N, C, H, W), as it is: Jittor knows one order in memory.

    channels: width of the layers that it goes through.
    """
    return x


def normalization(channels):
    """The group normalisation of the network: 32 groups. channels: a multiple of 32."""
    return GroupNorm32(GROUP_NORM_GROUPS, channels)


def _numpy_matmul(a, b, transpose_a=False, transpose_b=False):
    """Batched product in numpy: Jittor has no fast one on a CPU."""

    def forward(np, data):
        left, right = data["inputs"]
        left = left.swapaxes(1, 2) if transpose_a else left
        right = right.swapaxes(1, 2) if transpose_b else right
        np.matmul(left, right, out=data["outputs"][0])

    rows = a.shape[2] if transpose_a else a.shape[1]
    columns = b.shape[1] if transpose_b else b.shape[2]
    return jt.numpy_code((a.shape[0], rows, columns), a.dtype, [a, b], forward)


class _BatchedMatmul(jt.Function):
    """Product with its gradients as products: Jittor's own gradient is 40 times slower."""

    def execute(self, a, b):
        self.factors = a, b
        return _numpy_matmul(a, b)

    def grad(self, grad):
        a, b = self.factors
        return _numpy_matmul(grad, b, transpose_b=True), _numpy_matmul(a, grad, transpose_a=True)


def batched_matmul(a, b):
    """(B, n, k) times (B, k, m): (B, n, m)."""
    return _BatchedMatmul.apply(a, b)


def softmax(x):
    """Softmax over the last axis; any shape."""
    return nn.softmax(x, dim=-1)


def timestep_embedding(timesteps, dim, max_period=10000):
    """Sinusoidal embedding of time steps (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    timesteps: (N,) whole or fractional steps, 0 to about 1000. dim: even width.
    Returns (N, dim): the cosines, then the sines.
    """
    frequencies = runtime.to_tensor(timestep_frequencies(dim, runtime.precision(), max_period))
    angles = timesteps.unsqueeze(1).cast(frequencies.dtype) * frequencies.unsqueeze(0)  # (N, dim / 2)
    return jt.concat([jt.cos(angles), jt.sin(angles)], dim=1)


def per_case(values, like):
    """Return numbers, float64 numpy (N,), one for each case, in the type, device and shape of `like` (N, ...)."""
    values = runtime.to_tensor(values, dtype=str(like.dtype))
    return values.reshape(-1, *[1] * (len(like.shape) - 1)).expand(like.shape)


def channel_mean(x):
    """Mean over all positions: (N, C, H, W) to (N, C, 1, 1)."""
    return mean_last(x.reshape(x.shape[0], x.shape[1], -1)).unsqueeze(-1)


def mean_flat(tensor):
    """Mean over all axes but the first: (N, ...) to (N,)."""
    return mean_last(tensor.reshape(tensor.shape[0], -1)).reshape(-1)


def update_ema(target_params, source_params, rate=0.99):
    """target = rate * target + (1 - rate) * source, in place, for each pair of the two lists."""
    with jt.no_grad():
        for target, source in zip(target_params, source_params):
            target.update(target * runtime.scalar(rate) + source * runtime.scalar(1 - rate))

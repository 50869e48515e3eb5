"""The candidate: the same U-Net in plain jittor.nn, and its port."""

from guided_diffusion_jt import runtime
from guided_diffusion_jt.runtime import jt, nn, scalar  # not from jittor, which needs `runtime.start` before its import
from parity.protocol import Port

HEAD = {"final": "head"}  # this network's name -> PyTorch's, of the one module that they name differently


class BatchNorm2d(nn.Module):
    """Batch normalisation of (N, C, H, W) with the unbiased running variance, as in PyTorch.

    Jittor's own keeps the biased variance, computes it as E[x^2] - E[x]^2, which cancels, and rounds its constants to
    float32.
    """

    def __init__(self, channels):
        self.weight = jt.ones((channels,))
        self.bias = jt.zeros((channels,))
        self.running_mean = jt.zeros((channels,)).stop_grad()
        self.running_var = jt.ones((channels,)).stop_grad()
        self.num_batches_tracked = jt.zeros((1,), dtype="int32").stop_grad()

    def execute(self, x):
        if self.is_training():
            count = x.shape[0] * x.shape[2] * x.shape[3]
            mean = _channel_sum(x) / scalar(count)
            variance = _channel_sum((x - mean) * (x - mean)) / scalar(count)
            _follow(self.running_mean, mean.detach())
            _follow(self.running_var, variance.detach() * scalar(count / (count - 1)))
            self.num_batches_tracked.update(self.num_batches_tracked + 1)
        else:
            mean = _per_channel(self.running_mean)
            variance = _per_channel(self.running_var)
        scale = _per_channel(self.weight) / jt.sqrt(variance + scalar(1e-5))
        return (x - mean) * scale + _per_channel(self.bias)


def _per_channel(vector):
    return vector.reshape(1, -1, 1, 1)


def _channel_sum(x):
    """Sum over examples and positions: (N, C, H, W) to (1, C, 1, 1)."""
    return x.sum((2, 3), keepdims=True).sum(0, keepdims=True)  # in two stages: one long sum loses digits


def _follow(running, value):
    running.update(running + (value.reshape(-1) - running) * scalar(0.1))


def conv_norm(in_channels, out_channels):
    """Return a 3x3 convolution and a batch normalisation: (N, in, H, W) to (N, out, H, W)."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), BatchNorm2d(out_channels))


class UNet(nn.Module):
    """A U-Net of two levels: (N, in_channels, H, W) to (N, out_channels, H, W); H and W even and above 2.

    align_corners: whether the upsampling aligns the corners' centres; PyTorch's network has False.
    """

    def __init__(self, in_channels, width, out_channels, align_corners):
        self.act = nn.SiLU()
        self.down1 = conv_norm(in_channels, width)
        self.down2 = conv_norm(width, width)
        self.pool = nn.Pool(2)  # of the maximum; nn.MaxPool2d is a module with this one inside
        self.deep1 = conv_norm(width, 2 * width)
        self.deep2 = conv_norm(2 * width, 2 * width)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners)
        self.join1 = conv_norm(3 * width, width)
        self.join2 = conv_norm(width, width)
        self.final = nn.Conv2d(width, out_channels, 1)

    def execute(self, x):
        skip = self.act(self.down2(self.act(self.down1(x))))  # (N, width, H, W)
        deep = self.act(self.deep2(self.act(self.deep1(self.pool(skip)))))  # (N, 2 width, H / 2, W / 2)
        joined = jt.concat([skip, self.up(deep)], dim=1)  # (N, 3 width, H, W)
        return self.final(self.act(self.join2(self.act(self.join1(joined)))))


def _renamed(name, table):
    """Return a dotted name with its first part replaced."""
    first, dot, rest = name.partition(".")
    return table.get(first, first) + dot + rest


class UNetPort(Port):
    """The port: the four methods that each one has, and `name` for the module that is named differently.

    align_corners: True is the mistake that `faulty_suite` shows.
    """

    def __init__(self, align_corners=False):
        super().__init__("jittor")
        self.align_corners = align_corners

    def build(self, case):
        return UNet(**case.settings, align_corners=self.align_corners)

    def load(self, model, arrays):
        own = {theirs: ours for ours, theirs in HEAD.items()}
        runtime.load_state(model, {_renamed(name, own): array for name, array in arrays.items()})

    def state(self, model):
        return {self.name(name): array for name, array in runtime.state_arrays(model).items()}

    def run(self, model, tensors, tape):
        return {"out": model(tensors["x"])}

    def name(self, module_name):
        return _renamed(module_name, HEAD)

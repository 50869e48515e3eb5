"""The reference: a U-Net of two levels in plain torch.nn, and its port."""

import torch as th
from torch import nn

from guided_diffusion_pt import runtime
from parity.protocol import Port


def conv_norm(in_channels, out_channels):
    """Return a 3x3 convolution and a batch normalisation: (N, in, H, W) to (N, out, H, W)."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels))


class UNet(nn.Module):
    """A U-Net of two levels: (N, in_channels, H, W) to (N, out_channels, H, W); H and W even."""

    def __init__(self, in_channels, width, out_channels):
        super().__init__()
        self.act = nn.SiLU()
        self.down1 = conv_norm(in_channels, width)
        self.down2 = conv_norm(width, width)
        self.pool = nn.MaxPool2d(2)
        self.deep1 = conv_norm(width, 2 * width)
        self.deep2 = conv_norm(2 * width, 2 * width)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.join1 = conv_norm(3 * width, width)
        self.join2 = conv_norm(width, width)
        self.head = nn.Conv2d(width, out_channels, 1)

    def forward(self, x):
        skip = self.act(self.down2(self.act(self.down1(x))))  # (N, width, H, W)
        deep = self.act(self.deep2(self.act(self.deep1(self.pool(skip)))))  # (N, 2 width, H / 2, W / 2)
        joined = th.cat([skip, self.up(deep)], dim=1)  # (N, 3 width, H, W)
        return self.head(self.act(self.join2(self.act(self.join1(joined)))))


class UNetPort(Port):
    """The port: the four methods that each one has. `runtime` loads and reads any network with a state dict."""

    def __init__(self):
        super().__init__("pytorch")

    def build(self, case):
        return UNet(**case.settings)

    def load(self, model, arrays):
        runtime.load_state(model, arrays)

    def state(self, model):
        return runtime.state_arrays(model)

    def run(self, model, tensors, tape):
        return {"out": model(tensors["x"])}

"""The example's network, once for all backends."""

import math

from .. import nn


class Block(nn.Module):
    """A residual block that the time embedding shifts: (N, channels, H, W) and (N, channels) to the first shape."""

    def __init__(self, channels, dropout):
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.shift = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, embedding):
        n, channels, _, _ = x.shape
        h = self.norm(x) + self.shift(embedding).reshape(n, channels, 1, 1)
        return x + self.conv(self.dropout(nn.silu(h)))


class Attention(nn.Module):
    """Self-attention over all positions with one head, added to its input (N, channels, H, W)."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x):
        n, channels, height, width = x.shape
        tokens = x.reshape(n, channels, height * width).permute(0, 2, 1)  # (N, T, channels)
        qkv = self.qkv(self.norm(tokens))
        q = qkv[:, :, :channels]
        k = qkv[:, :, channels : 2 * channels]
        v = qkv[:, :, 2 * channels :]
        scores = nn.matmul(q, k.permute(0, 2, 1)) * nn.scalar(1 / math.sqrt(channels))  # (N, T queries, T keys)
        tokens = self.out(nn.matmul(nn.softmax(scores), v))
        return x + tokens.permute(0, 2, 1).reshape(n, channels, height, width)


class Network(nn.Network):
    """The whole network: x (N, in_ch, S, S) and time steps (N,) to (N, out_channels, S, S), where S is even."""

    def __init__(self, plan):
        super().__init__()
        self.masks = plan.mask_channels
        self.width = plan.width
        self.time = nn.Sequential(nn.Linear(plan.width, plan.width), nn.SiLU(), nn.Linear(plan.width, plan.width))
        self.image = nn.Conv2d(plan.image_channels, plan.width, 3, padding=1)
        self.mask = nn.Conv2d(plan.mask_channels, plan.width, 3, padding=1)
        self.down = nn.Conv2d(plan.width, plan.width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList([Block(plan.width, plan.dropout) for _ in range(2)])
        self.attention = Attention(plan.width)
        self.up = nn.Upsample(2, "bilinear")
        self.out = nn.zeroed(nn.Conv2d(2 * plan.width, plan.out_channels, 3, padding=1))

    def condition(self, image):
        """Return the features of the image (N, C, S, S), which no time step changes: a tuple of one tensor."""
        return (self.image(image),)

    def forward(self, x, t, conditioning=None):
        (image,) = self.condition(x[:, : -self.masks]) if conditioning is None else conditioning
        embedding = self.time(nn.timestep_embedding(t, self.width))
        first = self.mask(x[:, -self.masks :]) + image
        h = self.down(first)
        for block in self.blocks:
            h = block(h, embedding)
        h = self.up(self.attention(h))
        return self.out(nn.cat([first, h]))

"""Layers that mix the positions of features (N, channels, H, W): attention, transformers, patches."""

from .. import nn


class LayerNorm(nn.Module):
    """Normalisation over the channels at each position (Ba et al. 2016, arXiv:1607.06450), with a gain `g` and, if
    asked for, a bias `b`."""

    def __init__(self, channels, has_bias=False):
        super().__init__()
        self.g = nn.Parameter(1, channels, 1, 1, value=1.0)
        if has_bias:
            self.b = nn.Parameter(1, channels, 1, 1)
        self.has_bias = has_bias

    def forward(self, x):
        centred = x - nn.mean(x, 1)
        variance = nn.mean(centred * centred, 1)
        x = centred / nn.sqrt(variance + nn.scalar(1e-5)) * self.g
        return x + self.b if self.has_bias else x


class Residual(nn.Module):
    """A layer whose result is added to its input."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x) + x


class _Heads(nn.Module):
    """The base of both kinds of attention: queries, keys and values of each head from normalised features.

    channels: of input and output. heads: their number. dim_head: channels of each.
    """

    def __init__(self, channels, heads, dim_head):
        super().__init__()
        self.heads = heads
        self.dim_head = dim_head
        self.prenorm = LayerNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * heads * dim_head, 1, bias=False)

    def split(self, x):
        """Return q, k and v, each (N heads, dim_head, positions)."""
        n, _, height, width = x.shape
        qkv = self.to_qkv(self.prenorm(x)).reshape(n, 3, self.heads, self.dim_head, height * width)
        shape = (n * self.heads, self.dim_head, height * width)
        return [qkv[:, index].reshape(*shape) for index in range(3)]

    def joined(self, heads, x):
        """Return results (N heads, dim_head, positions) as features (N, heads dim_head, H, W) of x's size."""
        n, _, height, width = x.shape
        return heads.reshape(n, self.heads * self.dim_head, height, width)


class LinearAttention(_Heads):
    """Attention whose cost is linear in the number of positions (Shen et al. 2018, arXiv:1812.01243)."""

    def __init__(self, channels, heads, dim_head):
        super().__init__(channels, heads, dim_head)
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim_head, channels, 1), LayerNorm(channels))

    def forward(self, x):
        q, k, v = self.split(x)
        q = nn.softmax(q.permute(0, 2, 1)) * nn.scalar(self.dim_head**-0.5)  # (N heads, positions, dim_head)
        context = nn.matmul(nn.softmax(k), v.permute(0, 2, 1))  # (N heads, dim_head of k, dim_head of v)
        return self.to_out(self.joined(nn.matmul(q, context).permute(0, 2, 1), x))


class Attention(_Heads):
    """Attention of every position on all positions (Vaswani et al. 2017, arXiv:1706.03762, eq. 1)."""

    def __init__(self, channels, heads, dim_head):
        super().__init__(channels, heads, dim_head)
        self.to_out = nn.Conv2d(heads * dim_head, channels, 1)

    def forward(self, x):
        q, k, v = self.split(x)
        q = q.permute(0, 2, 1) * nn.scalar(self.dim_head**-0.5)
        weights = nn.softmax(nn.matmul(q, k))  # (N heads, positions of q, positions of k)
        return self.to_out(self.joined(nn.matmul(v, weights.permute(0, 2, 1)), x))


class Transformer(nn.Module):
    """Layers of attention and of two 1x1 convolutions, each added to its input."""

    def __init__(self, channels, depth, heads, dim_head):
        super().__init__()
        self.layers = nn.ModuleList([self._layer(channels, heads, dim_head) for _ in range(depth)])

    @staticmethod
    def _layer(channels, heads, dim_head):
        wide = nn.Conv2d(channels, 4 * channels, 1)
        narrow = nn.Conv2d(4 * channels, channels, 1)
        feed_forward = nn.Sequential(LayerNorm(channels), wide, nn.GELU(), narrow)
        return nn.ModuleList([Residual(Attention(channels, heads, dim_head)), Residual(feed_forward)])

    def forward(self, x):
        for attention, feed_forward in self.layers:
            x = feed_forward(attention(x))
        return x


class PixelUnshuffle(nn.Module):
    """Pixels of squares as channels: (N, C, H, W) to (N, C side^2, H / side, W / side).

    The new channel is c side^2 + side row + column.
    """

    def __init__(self, side):
        super().__init__()
        self.side = side

    def forward(self, x):
        n, channels, height, width = x.shape
        rows = height // self.side
        columns = width // self.side
        x = x.reshape(n, channels, rows, self.side, columns, self.side).permute(0, 1, 3, 5, 2, 4)
        return x.reshape(n, channels * self.side**2, rows, columns)


class PixelShuffle(nn.Module):
    """The inverse of `PixelUnshuffle`: (N, C side^2, H, W) to (N, C, side H, side W)."""

    def __init__(self, side):
        super().__init__()
        self.side = side

    def forward(self, x):
        n, channels, rows, columns = x.shape
        side = self.side
        x = x.reshape(n, channels // side**2, side, side, rows, columns).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(n, channels // side**2, rows * side, columns * side)

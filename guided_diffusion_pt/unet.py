"""The diffusion network: the U-Net of guided diffusion (Dhariwal & Nichol 2021, arXiv:2105.05233)
joined by the highway network of MedSegDiff (Wu et al. 2022, arXiv:2211.00611)."""

import math
from functools import partial

import torch as th
import torch.nn as nn

from guided_diffusion_core.networks.medsegdiff.plan import AttentionPlan, ConvPlan, DownsamplePlan, ResBlockPlan
from guided_diffusion_pt import runtime
from guided_diffusion_pt.highway import GatedHighwayUNet, HighwayUNet
from guided_diffusion_pt.nn import (
    AvgPool2d,
    Conv3x3,
    Dropout,
    Network,
    SiLU,
    batched_matmul,
    nearest_upsample,
    network_format,
    normalization,
    softmax,
    timestep_embedding,
)
from guided_diffusion_pt.recompute import checkpoint


class TimestepBlock(nn.Module):
    """A layer whose forward pass takes the time embedding as its second argument."""


class TimestepEmbedSequential(nn.Sequential):
    """Layers in a row; those that are a `TimestepBlock` are given the time embedding too."""

    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, TimestepBlock) else layer(x)
        return x


class Upsample(nn.Module):
    """Nearest upsampling by two, then a 3x3 convolution if `use_conv`: (N, C, H, W) to (N, C, 2H, 2W)."""

    def __init__(self, channels, use_conv):
        super().__init__()
        self.conv = Conv3x3(channels, channels) if use_conv else None

    def forward(self, x):
        x = nearest_upsample(x)
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """A 3x3 convolution of stride two if `use_conv`, else the 2x2 mean: (N, C, H, W) to (N, C, H/2, W/2)."""

    def __init__(self, channels, use_conv):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else AvgPool2d()

    def forward(self, x):
        return self.op(x)


class ResBlock(TimestepBlock):
    """Residual block conditioned on the time embedding (Dhariwal & Nichol 2021, appendix).

    layer:      ResBlockPlan, widths and change of resolution.
    plan:       UNetPlan, for what all blocks share.
    Input: x (N, C, H, W), emb (N, E). Output (N, C_out, H', W').
    """

    def __init__(self, layer, plan):
        super().__init__()
        width = layer.out_channels
        self.use_scale_shift_norm = plan.use_scale_shift_norm
        self.in_layers = nn.Sequential(normalization(layer.channels), SiLU(), Conv3x3(layer.channels, width))
        self.updown = layer.up or layer.down
        if layer.up:
            self.h_upd = Upsample(width, False)
            self.x_upd = Upsample(width, False)
        elif layer.down:
            self.h_upd = Downsample(width, False)
            self.x_upd = Downsample(width, False)
        self.emb_layers = nn.Sequential(
            SiLU(), nn.Linear(plan.time_embed_dim, 2 * width if plan.use_scale_shift_norm else width)
        )
        self.out_layers = nn.Sequential(normalization(width), SiLU(), Dropout(plan.dropout), Conv3x3(width, width))
        self.skip_connection = nn.Identity() if layer.channels == width else nn.Conv2d(layer.channels, width, 1)

    def forward(self, x, emb):
        if self.updown:
            h = self.h_upd(self.in_layers[1](self.in_layers[0](x)))
            h = self.in_layers[2](h)
            x = self.x_upd(x)
        else:
            h = self.in_layers(x)
        emb_out = self.emb_layers(emb)[:, :, None, None]  # (N, width or 2 width, 1, 1)
        norm, silu, dropout, conv = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = th.chunk(emb_out, 2, dim=1)
            h = conv(dropout(silu(norm(h) * (1 + scale) + shift)))
        else:
            h = self.out_layers(h + emb_out)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over all positions, added to its input (N, C, H, W).

    layer: AttentionPlan. plan: UNetPlan.
    """

    def __init__(self, layer, plan):
        super().__init__()
        self.norm = normalization(layer.channels)
        self.qkv = nn.Conv1d(layer.channels, 3 * layer.channels, 1)
        attention = QKVAttention if plan.use_new_attention_order else QKVAttentionLegacy
        self.attention = attention(layer.num_heads)
        self.proj_out = nn.Conv1d(layer.channels, layer.channels, 1)

    def forward(self, x):
        n, channels, height, width = x.shape
        h = self.norm(x.reshape(n, channels, height * width))  # (N, C, T)
        h = self.proj_out(self.attention(self.qkv(h)))
        return x + h.reshape(n, channels, height, width)  # in memory as x is


def scaled_attention(q, k, v):
    """softmax(q^T k / sqrt(channels)) v (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    q, k, v: (B, channels, T). Returns (B, channels, T). Both factors are scaled before the
    product, which keeps it in range in half precision.
    """
    scale = runtime.scalar(1 / math.sqrt(math.sqrt(q.shape[1])))
    weight = softmax(batched_matmul((q * scale).transpose(1, 2), k * scale))  # (B, T queries, T keys)
    return batched_matmul(v, weight.transpose(1, 2))


class QKVAttentionLegacy(nn.Module):
    """Attention on (N, heads * 3 * channels, T): split into heads first, then into q, k, v."""

    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv):
        n, width, length = qkv.shape
        channels = width // (3 * self.n_heads)
        q, k, v = th.chunk(qkv.reshape(n * self.n_heads, 3 * channels, length), 3, dim=1)
        return scaled_attention(q, k, v).reshape(n, width // 3, length)


class QKVAttention(nn.Module):
    """Attention on (N, 3 * heads * channels, T): split into q, k, v first, then into heads."""

    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv):
        n, width, length = qkv.shape
        channels = width // (3 * self.n_heads)
        q, k, v = [part.reshape(n * self.n_heads, channels, length) for part in th.chunk(qkv, 3, dim=1)]
        return scaled_attention(q, k, v).reshape(n, width // 3, length)


def _layer(layer, plan):
    """Build one layer of a plan."""
    if isinstance(layer, ConvPlan):
        return nn.Conv2d(layer.channels, layer.out_channels, 3, padding=1)
    if isinstance(layer, ResBlockPlan):
        return ResBlock(layer, plan)
    if isinstance(layer, AttentionPlan):
        return AttentionBlock(layer, plan)
    return Downsample(layer.channels, True) if isinstance(layer, DownsamplePlan) else Upsample(layer.channels, True)


def _block(layers, plan):
    return TimestepEmbedSequential(*[_layer(layer, plan) for layer in layers])


class _UNetModel(Network):
    """What both versions of the network share: every layer but the highway network.

    plan: UNetPlan (`guided_diffusion_core.networks.medsegdiff.plan.make_plan`).

    Input of all: x (N, in_channels, S, S), the image's channels and last the K of the noised mask; timesteps
    (N,), whole or fractional. Returns (out, cal): (N, out_channels, S, S), the K channels of the prediction and
    where learned the K of the variance; (N, K, S, S), the calibration mask in (0, 1).
    """

    def __init__(self, plan):
        super().__init__()
        self.plan = plan
        self.time_embed = nn.Sequential(
            nn.Linear(plan.model_channels, plan.time_embed_dim),
            SiLU(),
            nn.Linear(plan.time_embed_dim, plan.time_embed_dim),
        )
        self.input_blocks = nn.ModuleList([_block(layers, plan) for layers in plan.input_blocks])
        self.middle_block = _block(plan.middle_block, plan)
        self.output_blocks = nn.ModuleList([_block(layers, plan) for layers in plan.output_blocks])
        self.out = nn.Sequential(
            normalization(plan.model_channels), SiLU(), nn.Conv2d(plan.model_channels, plan.out_channels, 3, padding=1)
        )

    def _embed(self, timesteps):
        """Return the embedding of time steps, (N, time_embed_dim)."""
        return self.time_embed(timestep_embedding(timesteps, self.plan.model_channels))

    def _image(self, x):
        """The image's channels of the network's input."""
        return x[:, : -self.plan.mask_channels]

    def _encode(self, block, h, emb):
        """The output of an input block."""
        return checkpoint(block, (h, emb), (block,), self.plan.use_checkpoint)

    def _decode(self, h, hs, emb):
        """From the bottleneck's features and those of all input blocks to the output."""
        flag = self.plan.use_checkpoint
        block = self.middle_block
        h = checkpoint(block, (h, emb), (block,), flag)
        for block in self.output_blocks:
            h = checkpoint(partial(self._join, block), (h, hs.pop(), emb), (block,), flag)
        with runtime.autocast(h, enabled=False):  # as in the original: its steps are finer than those of 16 bits
            return checkpoint(self.out, (runtime.widened(h),), (self.out,), flag)

    def _join(self, block, h, skip, emb):
        return block(th.cat([h, skip], dim=1), emb)


class UNetModel_newpreview(_UNetModel):
    """The network of version `new`: the highway's anchors are added to the first features, without
    a gradient. The forward pass takes `conditioning`, of `condition`, where it is known already."""

    def __init__(self, plan):
        super().__init__(plan)
        self.hwm = HighwayUNet(plan.highway)

    def condition(self, image):
        """What depends on the image (N, C, S, S) alone: (anchors (N, model_channels, S, S), cal (N, K, S, S))."""
        with runtime.autocast(image):
            (first, second), cal = self.hwm(network_format(image, image.shape[1]))
            return th.cat([first, first, second], dim=1).detach(), cal  # base + base + 2 base = model_channels

    def forward(self, x, timesteps, conditioning=None):
        with runtime.autocast(x):
            emb = self._embed(timesteps)
            x = network_format(x, self.plan.model_channels)
            anchors, cal = self.condition(self._image(x)) if conditioning is None else conditioning
            h = self._encode(self.input_blocks[0], x, emb) + anchors
            hs = [h]
            for block in self.input_blocks[1:]:
                h = self._encode(block, h, emb)
                hs.append(h)
            return self._decode(h, hs, emb), cal


class UNetModel_v1preview(_UNetModel):
    """The network of version `1`: features of the encoder gate the highway network, whose bottleneck
    is added to the network's own (Wu et al. 2022, section 3.2), both with their gradients."""

    def __init__(self, plan):
        super().__init__(plan)
        self.hwm = GatedHighwayUNet(plan.highway)

    def forward(self, x, timesteps):
        with runtime.autocast(x):
            emb = self._embed(timesteps)
            x = network_format(x, self.plan.model_channels)
            h = x
            hs = []
            for block in self.input_blocks:
                h = self._encode(block, h, emb)
                hs.append(h)
            embedded, cal = self.hwm(self._image(x), [hs[join.block] for join in self.plan.highway.joins])
            return self._decode(h + embedded, hs, emb), cal


def make_network(plan):
    """The network of a `UNetPlan`, of the version that it says."""
    return (UNetModel_newpreview if plan.version == "new" else UNetModel_v1preview)(plan)

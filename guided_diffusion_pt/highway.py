"""The highway network: a 2D U-Net on the image. It yields features for the diffusion network and a calibration
mask (Wu et al. 2022, arXiv:2211.00611, section 3.2).

The attributes have the names and the order of the original, because the state dict is made of them.
"""

from functools import partial

import torch as th
import torch.nn as nn

from guided_diffusion_pt import runtime
from guided_diffusion_pt.fourier import spectral_filter
from guided_diffusion_pt.nn import BatchNorm2d, BilinearUpsample, Dropout2d, LeakyReLU, MaxPool2d, channel_mean
from guided_diffusion_pt.recompute import checkpoint


class ConvDropoutNormNonlin(nn.Module):
    """A 3x3 convolution, channel dropout, batch norm and leaky ReLU in a row.

    input_channels:  width of the input (N, input_channels, H, W).
    output_channels: width of the output (N, output_channels, H, W).
    dropout:         rate of the channel dropout; 0 leaves that layer out.
    """

    def __init__(self, input_channels, output_channels, dropout):
        super().__init__()
        self.conv = nn.Conv2d(input_channels, output_channels, 3, padding=1)
        self.dropout = Dropout2d(dropout) if dropout > 0 else None
        self.instnorm = BatchNorm2d(output_channels)
        self.lrelu = LeakyReLU()

    def forward(self, x):
        x = self.conv(x)
        if self.dropout is not None:
            x = self.dropout(x)
        return self.lrelu(self.instnorm(x))


class StackedConvLayers(nn.Module):
    """Several `ConvDropoutNormNonlin` in a row.

    widths:  (input, output) channels of each one.
    dropout: rate of their channel dropouts.
    """

    def __init__(self, widths, dropout):
        super().__init__()
        self.blocks = nn.Sequential(*[ConvDropoutNormNonlin(*pair, dropout) for pair in widths])

    def forward(self, x):
        return self.blocks(x)


def _stack_each(widths, dropout):
    """Build one `StackedConvLayers` per convolution, as the original nests its decoder."""
    return nn.Sequential(*[StackedConvLayers([pair], dropout) for pair in widths])


class FFParser(nn.Module):
    """A learned filter: the spectrum of each channel is multiplied by a complex weight (Wu et al. 2022,
    arXiv:2211.00611, eq. 4).

    dim: channels of the input (N, dim, h, W), which has the shape of the output.
    h:   height of the input.
    w:   width of its half spectrum, W // 2 + 1.

    The weight is (dim, h, w, 2): real and imaginary parts.
    """

    def __init__(self, dim, h=128, w=65):
        super().__init__()
        self.complex_weight = nn.Parameter(th.zeros(dim, h, w, 2))

    def forward(self, x):
        return spectral_filter(x, self.complex_weight)


class _EncoderDecoder(nn.Module):
    """The layers that both versions of the highway network share. plan: `HighwayPlan`."""

    def __init__(self, plan):
        super().__init__()
        encoder = plan.context[:-1]
        bottleneck = plan.context[-1]
        self.use_checkpoint = plan.use_checkpoint
        # The decoder's stages come before the encoder's and the bottleneck, as in the original's state dict.
        self.conv_blocks_localization = nn.ModuleList([_stack_each(widths, 0.0) for widths in plan.localization])
        self.conv_blocks_context = nn.ModuleList(
            [StackedConvLayers(widths, plan.dropout) for widths in encoder] + [_stack_each(bottleneck, plan.dropout)]
        )
        # One pooling after each encoder stage ("transition down"), one upsampling before each decoder stage.
        self.td = nn.ModuleList([MaxPool2d() for _ in encoder])
        self.tu = nn.ModuleList([BilinearUpsample(2) for _ in plan.localization])

    def _run(self, stage, x):
        """Run an encoder stage or another single layer on x."""
        return checkpoint(stage, (x,), (stage,), self.use_checkpoint)

    def _decode(self, x, skips):
        """Return the features of each decoder stage, coarse to fine.

        x: features of the bottleneck. skips: features of the encoder stages, fine to coarse.
        """
        features = []
        for stage, upsample, skip in zip(self.conv_blocks_localization, self.tu, reversed(skips)):
            x = checkpoint(partial(self._join, stage, upsample), (x, skip), (stage,), self.use_checkpoint)
            features.append(x)
        return features

    def _calibration(self, x):
        """Return the calibration mask (N, K, S, S) from the last features, in float32 in any case."""
        with runtime.autocast(x, enabled=False):
            return th.sigmoid(self.seg_outputs[0](runtime.widened(x)))

    def _join(self, stage, upsample, x, skip):
        """Upsample x, append the encoder's features `skip` of that size and run a decoder stage on both."""
        return stage(th.cat([upsample(x), skip], dim=1))


def _mask_head(plan):
    """Build the 1x1 convolution from the last features to the calibration mask, in a list as in the original."""
    channels = plan.localization[-1][-1][-1]  # output width of the last stage's last convolution
    return nn.ModuleList([nn.Conv2d(channels, plan.mask_channels, 1, bias=False)])


class HighwayUNet(_EncoderDecoder):
    """The highway network of version `new`, with five poolings.

    plan: `HighwayPlan`.

    The forward pass takes the image (N, C, S, S) and returns ((first, second), cal): anchor features (N, base, S, S)
    and (N, 2 base, S, S), and the calibration mask (N, K, S, S) in (0, 1).
    """

    def __init__(self, plan):
        super().__init__(plan)
        self.seg_outputs = _mask_head(plan)
        self.upscale_logits_ops = nn.ModuleList([BilinearUpsample(scale) for scale in plan.anchor_scales])

    def forward(self, x):
        skips = []
        for stage, pool in zip(self.conv_blocks_context, self.td):
            x = self._run(stage, x)
            skips.append(x)
            x = pool(x)
        features = self._decode(self._run(self.conv_blocks_context[-1], x), skips)
        # The network uses the anchors of the half and the quarter resolution only. The original also upsamples the
        # two coarser ones to full size, and then drops them.
        anchors = (self.upscale_logits_ops[-1](features[-2]), self.upscale_logits_ops[-2](features[-3]))
        return anchors, self._calibration(features[-1])


class GatedHighwayUNet(_EncoderDecoder):
    """The highway network of version `1`: features of the diffusion network gate its own after each pooling but the
    last.

    plan: `HighwayPlan`.

    The forward pass takes the image (N, C, S, S) and `hs`, the diffusion network's features that `plan.joins` name.
    It returns (embedded, cal): a summand for the diffusion network's bottleneck, of the same shape, and the
    calibration mask (N, K, S, S) in (0, 1).
    """

    def __init__(self, plan):
        super().__init__(plan)
        self.conv_trans_blocks_a = nn.ModuleList(
            [nn.Conv2d(join.channels, join.out_channels, 1) for join in plan.joins]
        )
        self.conv_trans_blocks_b = nn.ModuleList([nn.Conv2d(join.out_channels, 1, 1) for join in plan.joins])
        self.ffparser = nn.ModuleList(
            [FFParser(join.out_channels, join.size, join.size // 2 + 1) for join in plan.joins]
        )
        self.seg_outputs = _mask_head(plan)
        self.bottleneck_embed = nn.Conv2d(*plan.embed, 1)

    def forward(self, x, hs):
        skips = []
        for index, (stage, pool) in enumerate(zip(self.conv_blocks_context, self.td)):
            x = self._run(stage, x)
            skips.append(x)
            x = pool(x)
            if index < len(hs):
                layers = (self.conv_trans_blocks_a[index], self.ffparser[index], self.conv_trans_blocks_b[index])
                x = checkpoint(partial(self._gate, index), (x, hs[index]), layers, self.use_checkpoint)
        x = self._run(self.conv_blocks_context[-1], x)
        features = self._decode(x, skips)
        return self._run(self.bottleneck_embed, x), self._calibration(features[-1])

    def _gate(self, index, x, h):
        """Multiply x by one number per position and one per channel, both from the filtered features h.

        x: (N, C, H, W). h: features (N, C', H, W) of the diffusion network.
        """
        filtered = self.ffparser[index](self.conv_trans_blocks_a[index](h))  # (N, C, H, W)
        spatial = self.conv_trans_blocks_b[index](filtered)  # (N, 1, H, W)
        return x * spatial * channel_mean(filtered)  # the last factor is (N, C, 1, 1)

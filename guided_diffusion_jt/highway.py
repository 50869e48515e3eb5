"""The highway network: a 2D U-Net on the image, which yields features for the diffusion
network and a calibration mask (Wu et al. 2022, arXiv:2211.00611, section 3.2).

Attribute names are the original's, since the state dict is named after them.
"""

from functools import partial

from guided_diffusion_jt.fourier import spectral_filter
from guided_diffusion_jt.nn import BatchNorm2d, BilinearUpsample, Dropout2d, LeakyReLU, MaxPool2d, channel_mean
from guided_diffusion_jt.recompute import checkpoint
from guided_diffusion_jt.runtime import jt, nn


class ConvDropoutNormNonlin(nn.Module):
    """3x3 convolution, channel dropout, batch norm, leaky ReLU: (N, in, H, W) to (N, out, H, W)."""

    def __init__(self, input_channels, output_channels, dropout):
        self.conv = nn.Conv2d(input_channels, output_channels, 3, padding=1)
        self.dropout = Dropout2d(dropout) if dropout > 0 else None
        self.instnorm = BatchNorm2d(output_channels)
        self.lrelu = LeakyReLU()

    def execute(self, x):
        x = self.conv(x)
        if self.dropout is not None:
            x = self.dropout(x)
        return self.lrelu(self.instnorm(x))


class StackedConvLayers(nn.Module):
    """Several `ConvDropoutNormNonlin`; widths: (in, out) channels of each."""

    def __init__(self, widths, dropout):
        self.blocks = nn.Sequential(*[ConvDropoutNormNonlin(*pair, dropout) for pair in widths])

    def execute(self, x):
        return self.blocks(x)


def _stack_each(widths, dropout):
    """One `StackedConvLayers` per convolution, as the original nests its decoder."""
    return nn.Sequential(*[StackedConvLayers([pair], dropout) for pair in widths])


class FFParser(nn.Module):
    """A learned filter of every channel's spectrum (Wu et al. 2022, arXiv:2211.00611, eq. 4):
    (N, dim, h, W) to the same, with W // 2 + 1 = w. The weight is (dim, h, w, 2), real and imaginary."""

    def __init__(self, dim, h=128, w=65):
        self.complex_weight = jt.zeros((dim, h, w, 2))

    def execute(self, x):
        return spectral_filter(x, self.complex_weight)


class _EncoderDecoder(nn.Module):
    """The layers that both versions share; plan: `HighwayPlan`."""

    def __init__(self, plan):
        encoder = plan.context[:-1]
        bottleneck = plan.context[-1]
        self.use_checkpoint = plan.use_checkpoint
        self.conv_blocks_localization = nn.ModuleList([_stack_each(widths, 0.0) for widths in plan.localization])
        self.conv_blocks_context = nn.ModuleList(
            [StackedConvLayers(widths, plan.dropout) for widths in encoder] + [_stack_each(bottleneck, plan.dropout)]
        )
        self.td = nn.ModuleList([MaxPool2d() for _ in encoder])
        self.tu = nn.ModuleList([BilinearUpsample(2) for _ in plan.localization])

    def _run(self, stage, x):
        """The output of an encoder stage or another single layer."""
        return checkpoint(stage, (x,), (stage,), self.use_checkpoint)

    def _decode(self, x, skips):
        """The features of each decoder stage, from the bottleneck's and the encoder's."""
        features = []
        for stage, upsample, skip in zip(self.conv_blocks_localization, self.tu, reversed(skips)):
            x = checkpoint(partial(self._join, stage, upsample), (x, skip), (stage,), self.use_checkpoint)
            features.append(x)
        return features

    def _calibration(self, x):
        """The calibration mask from the last features."""
        return jt.sigmoid(self.seg_outputs[0](x))

    def _join(self, stage, upsample, x, skip):
        return stage(jt.concat([upsample(x), skip], dim=1))


def _mask_head(plan):
    """The 1x1 convolution of the last features to the calibration mask, in a list as in the original."""
    return nn.ModuleList([nn.Conv2d(plan.localization[-1][-1][-1], plan.mask_channels, 1, bias=False)])


class HighwayUNet(_EncoderDecoder):
    """The highway network of version `new`, with five poolings.

    plan: `HighwayPlan`. Input: image (N, C, S, S). Returns ((first, second), cal): anchor features
    (N, base, S, S) and (N, 2 base, S, S), and the calibration mask (N, K, S, S) in (0, 1).
    """

    def __init__(self, plan):
        super().__init__(plan)
        self.seg_outputs = _mask_head(plan)
        self.upscale_logits_ops = nn.ModuleList([BilinearUpsample(scale) for scale in plan.anchor_scales])

    def execute(self, x):
        skips = []
        for stage, pool in zip(self.conv_blocks_context, self.td):
            x = self._run(stage, x)
            skips.append(x)
            x = pool(x)
        features = self._decode(self._run(self.conv_blocks_context[-1], x), skips)
        # The network adds the anchors of the half and the quarter resolution only; the original
        # also brings the two coarser ones to full size and throws them away.
        anchors = (self.upscale_logits_ops[-1](features[-2]), self.upscale_logits_ops[-2](features[-3]))
        return anchors, self._calibration(features[-1])


class GatedHighwayUNet(_EncoderDecoder):
    """The highway network of version `1`: after each pooling but the last its features are gated by
    the diffusion network's.

    plan: `HighwayPlan`. Input: image (N, C, S, S) and the list of features that its joins name. Returns
    (embedded, cal): what is added to the diffusion network's bottleneck, as wide and as large as
    that; the calibration mask (N, K, S, S) in (0, 1).
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

    def execute(self, x, hs):
        skips = []
        for index, (stage, pool) in enumerate(zip(self.conv_blocks_context, self.td)):
            x = self._run(stage, x)
            skips.append(x)
            x = pool(x)
            if index < len(hs):
                layers = self.conv_trans_blocks_a[index], self.ffparser[index], self.conv_trans_blocks_b[index]
                x = checkpoint(partial(self._gate, index), (x, hs[index]), layers, self.use_checkpoint)
        x = self._run(self.conv_blocks_context[-1], x)
        features = self._decode(x, skips)
        return self._run(self.bottleneck_embed, x), self._calibration(features[-1])

    def _gate(self, index, x, h):
        """x times one number per position and one per channel, both from the filtered features h."""
        h = self.ffparser[index](self.conv_trans_blocks_a[index](h))
        return x * self.conv_trans_blocks_b[index](h) * channel_mean(h)  # (N, C, S, S) (N, 1, S, S) (N, C, 1, 1)

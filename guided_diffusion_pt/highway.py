"""The highway network: a 2D U-Net on the image alone, which yields anchor features for the
diffusion network and a calibration mask (Wu et al. 2022, arXiv:2211.00611, section 3.2).

Attribute names are the original's, since the state dict is named after them.
"""
import torch as th
import torch.nn as nn

from guided_diffusion_pt.nn import BatchNorm2d, BilinearUpsample, Dropout2d, LeakyReLU, MaxPool2d


class ConvDropoutNormNonlin(nn.Module):
    """3x3 convolution, channel dropout, batch norm, leaky ReLU: (N, in, H, W) to (N, out, H, W)."""

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
    """Several `ConvDropoutNormNonlin`; widths: (in, out) channels of each."""

    def __init__(self, widths, dropout):
        super().__init__()
        self.blocks = nn.Sequential(*[ConvDropoutNormNonlin(*pair, dropout) for pair in widths])

    def forward(self, x):
        return self.blocks(x)


def _stack_each(widths, dropout):
    """One `StackedConvLayers` per convolution, as the original nests its decoder."""
    return nn.Sequential(*[StackedConvLayers([pair], dropout) for pair in widths])


class HighwayUNet(nn.Module):
    """Encoder-decoder with five poolings.

    plan: `HighwayPlan`. Input: image (N, C, S, S). Returns ((first, second), cal): anchor features
    (N, base, S, S) and (N, 2 base, S, S), and the calibration mask (N, 1, S, S) in (0, 1).
    """

    def __init__(self, plan):
        super().__init__()
        encoder, bottleneck = plan.context[:-1], plan.context[-1]
        self.conv_blocks_localization = nn.ModuleList([_stack_each(widths, 0.0) for widths in plan.localization])
        self.conv_blocks_context = nn.ModuleList(
            [StackedConvLayers(widths, plan.dropout) for widths in encoder]
            + [_stack_each(bottleneck, plan.dropout)])
        self.td = nn.ModuleList([MaxPool2d() for _ in encoder])
        self.tu = nn.ModuleList([BilinearUpsample(2) for _ in plan.localization])
        self.seg_outputs = nn.ModuleList([nn.Conv2d(plan.localization[-1][-1][-1], 1, 1, bias=False)])
        self.upscale_logits_ops = nn.ModuleList([BilinearUpsample(scale) for scale in plan.anchor_scales])

    def forward(self, x):
        skips = []
        for stage, pool in zip(self.conv_blocks_context, self.td):
            x = stage(x)
            skips.append(x)
            x = pool(x)
        x = self.conv_blocks_context[-1](x)
        features = []
        for stage, upsample, skip in zip(self.conv_blocks_localization, self.tu, reversed(skips)):
            x = stage(th.cat([upsample(x), skip], dim=1))
            features.append(x)
        # The network adds the anchors of the half and the quarter resolution only; the original
        # also brings the two coarser ones to full size and throws them away.
        anchors = (self.upscale_logits_ops[-1](features[-2]), self.upscale_logits_ops[-2](features[-3]))
        return anchors, th.sigmoid(self.seg_outputs[0](x))

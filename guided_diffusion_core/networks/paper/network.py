"""The paper's network, once for all backends: two encoders, of the noised mask and of the image, and one decoder.

At each level a conditioner changes the image's features by those of the mask, filtered in the spectrum (FF-Parser).
Attributes have the names of lucidrains' med-seg-diff-pytorch 0.3.3 (MIT), because the state dict is made of them.

Shapes: features are (N, channels, H, W), the vector of the time step is (N, 4 dim).
"""

from guided_diffusion_core.networks.embedding import sine_frequencies
from guided_diffusion_core.networks.paper.settings import (
    CONDITIONER_GROUPS,
    DYNAMIC,
    NONE,
    level_channels,
    skip_channels,
)

from .. import nn
from .attention import Attention, LayerNorm, LinearAttention, PixelShuffle, PixelUnshuffle, Residual, Transformer


class Block(nn.Module):
    """3x3 convolution, group norm, scale and shift by the time step, SiLU."""

    def __init__(self, channels, out_channels, groups):
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(groups, out_channels)

    def forward(self, x, scale_shift=None):
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            n, channels, _, _ = x.shape
            scale = scale_shift[:, :channels].reshape(n, channels, 1, 1)
            shift = scale_shift[:, channels:].reshape(n, channels, 1, 1)
            x = x * (scale + nn.scalar(1.0)) + shift
        return nn.silu(x)


class ResnetBlock(nn.Module):
    """Two blocks with a skip connection; a vector of the time step scales and shifts the features of the first."""

    def __init__(self, channels, out_channels, groups, time_channels=None):
        super().__init__()
        if time_channels:
            self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, 2 * out_channels))
        self.block1 = Block(channels, out_channels, groups)
        self.block2 = Block(out_channels, out_channels, groups)
        self.res_conv = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, time=None):
        scale_shift = None if time is None else self.mlp(time)  # (N, 2 out_channels)
        return self.block2(self.block1(x, scale_shift)) + self.res_conv(x)


def downsample(channels, out_channels, is_last):
    """Build the layer to the next level, which halves both sides; after the last level the sides stay."""
    if is_last:
        return nn.Conv2d(channels, out_channels, 3, padding=1)
    return nn.Sequential(PixelUnshuffle(2), nn.Conv2d(4 * channels, out_channels, 1))


def upsample(channels, out_channels, is_first):
    """Build the layer to the level before, which doubles both sides; before the first level the sides stay."""
    conv = nn.Conv2d(channels, out_channels, 3, padding=1)
    return conv if is_first else nn.Sequential(nn.Upsample(2), conv)


class ViT(nn.Module):
    """The transformer that makes a map from the spectra of mask and image (N, 4 channels, H, H): (N, channels, H, H).

    channels: of the map. size: H. patch: side of the patches, which become tokens.
    """

    def __init__(self, plan, channels, size, patch):
        super().__init__()
        side = size // patch
        self.pos_emb = nn.Parameter(channels, side, side)
        values = channels * patch**2
        self.to_tokens = nn.Sequential(PixelUnshuffle(patch), nn.Conv2d(4 * values, channels, 1), LayerNorm(channels))
        self.transformer = Transformer(channels, plan.vit_depth, plan.vit_heads, plan.vit_dim_head)
        to_values = nn.zeroed(nn.Conv2d(channels, values, 1))
        self.to_patches = nn.Sequential(LayerNorm(channels), to_values, PixelShuffle(patch))

    def forward(self, spectra):
        tokens = self.to_tokens(spectra) + self.pos_emb
        return self.to_patches(self.transformer(tokens))


class Conditioner(nn.Module):
    """The image's features changed by those of the mask (Wu et al. 2022, arXiv:2211.00611, eqs. 3 and 4).

    plan: `PaperConfig`. level: its number. Both inputs and the result are (N, channels, H, H).
    """

    def __init__(self, plan, level):
        super().__init__()
        channels = plan.dims[level]
        size = plan.sizes[level]
        self.is_dynamic = plan.conditioning == DYNAMIC
        self.filters = plan.ff_parser != NONE and self.is_dynamic
        self.has_transformer = plan.ff_parser == DYNAMIC and self.is_dynamic
        if self.filters:
            self.ff_parser_attn_map = nn.Parameter(channels, size, size, value=1.0)
        if self.has_transformer:
            self.to_dynamic_ff_parser_attn_map = ViT(plan, channels, size, plan.patch(level))
        if self.is_dynamic:
            self.norm_input = LayerNorm(channels, has_bias=True)
            self.norm_condition = LayerNorm(channels, has_bias=True)
        self.block = ResnetBlock(channels, channels, CONDITIONER_GROUPS)

    def forward(self, x, c):
        if self.is_dynamic:
            c = self.norm_input(self.filtered(x, c)) * self.norm_condition(c) * c
        return self.block(c)

    def filtered(self, x, c):
        """Return x after its spectrum was multiplied by the map."""
        if not self.filters:
            return x
        real, imaginary = nn.fft2(x)
        factors = self.ff_parser_attn_map
        if self.has_transformer:
            spectra = nn.cat([_interleaved(real, imaginary), _interleaved(*nn.fft2(c))])  # (N, 4 channels, H, H)
            factors = factors + self.to_dynamic_ff_parser_attn_map(spectra)
        return nn.ifft2(real * factors, imaginary * factors)


def _interleaved(real, imaginary):
    """Return real and imaginary parts (N, C, H, W) channel by channel: (N, 2 C, H, W)."""
    n, channels, height, width = real.shape
    parts = [part.reshape(n, channels, 1, height, width) for part in (real, imaginary)]
    return nn.cat(parts, 2).reshape(n, 2 * channels, height, width)


class Time(nn.Module):
    """Sines and cosines of the time step (N,): (N, dim), at frequencies 10000^(-j / (dim / 2 - 1)), j < dim / 2."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, t):
        half = self.dim // 2
        frequencies = nn.constant(sine_frequencies(self.dim, nn.precision()))
        angles = nn.floating(t).reshape(t.shape[0], 1) * frequencies.reshape(1, half)
        return nn.cat([nn.sin(angles), nn.cos(angles)])


class Network(nn.Network):
    """The whole network. plan: `PaperConfig`.

    The forward pass takes x (N, in_ch, S, S), the channels of the image and then those of the noised mask; time steps
    t (N,); what `condition` returns, where it is known; with `self_condition` the mask predicted one step before
    (N, mask_channels, S, S), None for zeros. It returns the prediction (N, mask_channels, S, S).
    """

    def __init__(self, plan):
        super().__init__()
        self.masks = plan.mask_channels
        self.self_condition = plan.self_condition
        self.skip_conditions = plan.skip_conditions
        self.init_conv = nn.Conv2d(plan.mask_channels * (2 if plan.self_condition else 1), plan.dim, 7, padding=3)
        self.cond_init_conv = nn.Conv2d(plan.image_channels, plan.dim, 7, padding=3)
        time = 4 * plan.dim
        self.time_mlp = nn.Sequential(Time(plan.dim), nn.Linear(plan.dim, time), nn.GELU(), nn.Linear(time, time))
        levels = range(len(plan.sizes))
        self.conditioners = nn.ModuleList([Conditioner(plan, level) for level in levels])
        self.downs = nn.ModuleList([self._encoder_level(plan, level) for level in levels])
        last = plan.dims[-1]
        self.mid_block1 = ResnetBlock(last, last, plan.groups, time)
        self.mid_transformer = Transformer(last, plan.mid_depth, plan.heads, plan.dim_head)
        self.mid_block2 = ResnetBlock(last, last, plan.groups, time)
        self.cond_downs = nn.ModuleList([self._encoder_level(plan, level) for level in levels])
        self.cond_mid_block1 = ResnetBlock(last, last, plan.groups, time)
        self.ups = nn.ModuleList([self._decoder_level(plan, level) for level in reversed(levels)])
        self.final_res_block = ResnetBlock(2 * plan.dim, plan.dim, plan.groups, time)
        self.final_conv = nn.Conv2d(plan.dim, plan.out_channels, 1)

    @staticmethod
    def _attention(plan, level, channels):
        kind = Attention if level in plan.full_levels else LinearAttention
        return Residual(kind(channels, plan.heads, plan.dim_head))

    def _encoder_level(self, plan, level):
        """Build two residual blocks, attention, and the layer to the next level."""
        channels, following = level_channels(plan)[level]
        blocks = [ResnetBlock(channels, channels, plan.groups, 4 * plan.dim) for _ in range(2)]
        is_last = level == len(plan.sizes) - 1
        return nn.ModuleList(
            [*blocks, self._attention(plan, level, channels), downsample(channels, following, is_last)]
        )

    def _decoder_level(self, plan, level):
        """Build two residual blocks, which also see the encoders' features, attention, and the layer upward."""
        channels, following = level_channels(plan)[level]
        width = following + skip_channels(plan)[level]
        blocks = [ResnetBlock(width, following, plan.groups, 4 * plan.dim) for _ in range(2)]
        return nn.ModuleList(
            [*blocks, self._attention(plan, level, following), upsample(following, channels, level == 0)]
        )

    def condition(self, image):
        """Return the first features of the image (N, C, S, S), which no time step changes: a tuple of one tensor."""
        return (self.cond_init_conv(image),)

    def forward(self, x, t, conditioning=None, self_condition=None):
        mask = x[:, -self.masks :]
        (c,) = self.condition(x[:, : -self.masks]) if conditioning is None else conditioning
        if self.self_condition:
            before = mask * nn.scalar(0.0) if self_condition is None else self_condition
            mask = nn.cat([before, mask])
        first = self.init_conv(mask)
        time = self.time_mlp(t)
        x, c, skips = self._encode(first, c, time)
        x = self.mid_block1(x, time) + self.cond_mid_block1(c, time)
        x = self.mid_block2(self.mid_transformer(x), time)
        for block1, block2, attention, up in self.ups:
            x = block1(nn.cat([x, *skips.pop()]), time)
            x = block2(nn.cat([x, *skips.pop()]), time)
            x = up(attention(x))
        return self.final_conv(self.final_res_block(nn.cat([x, first]), time))

    def _encode(self, x, c, time):
        """Return (x, c, skips): the features after both encoders, and what the decoder takes from the end of a list."""
        skips = []
        for tower, image_tower, conditioner in zip(self.downs, self.cond_downs, self.conditioners):
            block1, block2, attention, down = tower
            image_block1, image_block2, image_attention, image_down = image_tower
            x = block1(x, time)
            c = image_block1(c, time)
            skips.append(self._skip(x, c))
            x = attention(block2(x, time))
            c = image_attention(image_block2(c, time))
            c = conditioner(x, c)
            skips.append(self._skip(x, c))
            x = down(x)
            c = image_down(c)
        return x, c, skips

    def _skip(self, x, c):
        return (x, c) if self.skip_conditions else (x,)

"""Make the plan of the network: all blocks in order, with their numbers of channels.

Both backends build the network from this plan and compute no widths themselves. The names and shapes of the state
dict follow from it without a framework. The architecture is MedSegDiff's (Wu et al. 2022,
arXiv:2211.00611): the U-Net of guided diffusion (Dhariwal & Nichol 2021, arXiv:2105.05233) together
with the highway network (a 2D U-Net after Isensee et al. 2021), which sees only the image.
"""

from dataclasses import dataclass

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks.family import check_channels

GROUP_NORM_GROUPS = 32
HIGHWAY_POOLINGS = 5  # of version `new`
HIGHWAY_MAX_WIDTH = 480
LARGEST_MULTIPLIER = 64


@dataclass(frozen=True)
class ConvPlan:
    """A 3x3 convolution of the network's input."""

    channels: int
    out_channels: int


@dataclass(frozen=True)
class ResBlockPlan:
    """A residual block; `up` and `down` change the resolution by two."""

    channels: int
    out_channels: int
    up: bool = False
    down: bool = False


@dataclass(frozen=True)
class AttentionPlan:
    """Self-attention over all positions."""

    channels: int
    num_heads: int


@dataclass(frozen=True)
class DownsamplePlan:
    """A 3x3 convolution of stride two."""

    channels: int


@dataclass(frozen=True)
class UpsamplePlan:
    """Nearest upsampling by two and a 3x3 convolution."""

    channels: int


@dataclass(frozen=True)
class JoinPlan:
    """Features of the diffusion network that gate those of the highway network, in version `1`.

    block:        index of the input block that they come from.
    channels:     their number before a 1x1 convolution.
    out_channels: their number after it, which is the highway's.
    size:         side of both in pixels.
    """

    block: int
    channels: int
    out_channels: int
    size: int


@dataclass(frozen=True)
class HighwayPlan:
    """The highway network: each stage is a tuple of (in, out) channels of its 3x3 convolutions.

    mask_channels: channels of the calibration mask.
    context:       encoder stages, one more than there are poolings; the last is the bottleneck.
    localization:  decoder stages, after upsampling by two and joining the encoder's features.
    anchor_scales: version `new`: scale of the upsampling of each decoder stage's features but the last
                   one's to full size, in the order of the state dict's `upscale_logits_ops`.
    joins:         version `1`: `JoinPlan` after each pooling but the last.
    embed:         version `1`: (in, out) channels of the bottleneck's way into the diffusion network.
    """

    context: tuple
    localization: tuple
    dropout: float
    mask_channels: int = 1
    use_checkpoint: bool = False
    anchor_scales: tuple = ()
    joins: tuple = ()
    embed: tuple = ()

    @property
    def poolings(self):
        """Return how many times the image's side is halved on the way to the bottleneck."""
        return len(self.localization)


@dataclass(frozen=True)
class UNetPlan:
    """The whole network.

    `input_blocks` and `output_blocks` are tuples of blocks, and a block is a tuple of layer plans. The output of each
    input block is concatenated to the input of one output block, in the opposite order.
    """

    version: str
    image_size: int
    in_channels: int
    mask_channels: int
    model_channels: int
    out_channels: int
    time_embed_dim: int
    input_blocks: tuple
    middle_block: tuple
    output_blocks: tuple
    highway: HighwayPlan
    dropout: float
    use_checkpoint: bool
    use_scale_shift_norm: bool
    use_new_attention_order: bool


def default_channel_mult(image_size):
    """Return the width multipliers per resolution; at 64, 128, 256 and 512 pixels the original's."""
    if image_size >= 256:
        return (1, 1, 2, 2, 4, 4)
    return (1, 1, 2, 3, 4) if image_size >= 128 else (1, 2, 3, 4)


def make_plan(config):
    """Return the `UNetPlan` of a `ModelConfig`. Raises `UserError` for settings that make none."""
    _check_sizes(config)
    channel_mult = _numbers("--channel_mult", config.channel_mult) or default_channel_mult(config.image_size)
    if max(channel_mult) > LARGEST_MULTIPLIER:
        raise found_expected(
            "--channel_mult", config.channel_mult, f"multipliers up to {LARGEST_MULTIPLIER}", "Write for example 1,2,4."
        )
    if config.image_size % 2 ** (len(channel_mult) - 1):
        raise found_expected(
            "--channel_mult",
            f"{len(channel_mult)} multipliers for {config.image_size} pixels",
            "a size divisible by two once per multiplier but the first",
            "Give fewer multipliers.",
        )
    attention = _attention_downsampling(config, channel_mult)
    input_blocks, skips = _input_blocks(config, channel_mult, attention)
    width = skips[-1]
    middle = (ResBlockPlan(width, width), _attention(config, width, config.num_heads), ResBlockPlan(width, width))
    return UNetPlan(
        version=config.version,
        image_size=config.image_size,
        in_channels=config.in_ch,
        mask_channels=config.mask_channels,
        model_channels=config.num_channels,
        out_channels=config.out_channels,
        time_embed_dim=4 * config.num_channels,
        input_blocks=input_blocks,
        middle_block=middle,
        output_blocks=_output_blocks(config, channel_mult, attention, width, skips),
        highway=_highway_new(config) if config.version == "new" else _highway_v1(config, input_blocks, width),
        dropout=config.dropout,
        use_checkpoint=config.use_checkpoint,
        use_scale_shift_norm=config.use_scale_shift_norm,
        use_new_attention_order=config.use_new_attention_order,
    )


def _check_sizes(config):
    """Refuse widths and sizes that group norm or the poolings cannot divide; `UserError`."""
    for flag, value, unit in (
        ("--image_size", config.image_size, "pixels"),
        ("--num_channels", config.num_channels, "channels"),
    ):
        if value < 32 or value % 32:
            raise found_expected(flag, value, f"a multiple of 32 {unit}", f"Use {max(32, round(value / 32) * 32)}.")
    check_channels(config)
    if config.num_res_blocks < 1:
        raise found_expected("--num_res_blocks", config.num_res_blocks, "at least 1", "Use 2.")


def _numbers(flag, text):
    """Return the whole numbers of a text such as "1,2,4", a tuple; `UserError` for anything else."""
    try:
        numbers = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (0,)
    if any(number < 1 for number in numbers):
        raise found_expected(flag, repr(text), "positive whole numbers separated by commas", "Write for example 1,2,4.")
    return numbers


def _attention_downsampling(config, channel_mult):
    """Return the downsampling factors at which attention works, a set, from resolutions in pixels."""
    valid = [config.image_size // 2**level for level in range(len(channel_mult))]
    wanted = _numbers("--attention_resolutions", config.attention_resolutions)
    for resolution in wanted:
        if resolution not in valid:
            raise found_expected(
                "--attention_resolutions",
                resolution,
                f"resolutions of this network: {', '.join(map(str, valid))}",
                "Choose among them, in pixels.",
            )
    # "16" at 64 px becomes 4: the number by which the resolution has been divided
    return {config.image_size // resolution for resolution in wanted}


def _attention(config, channels, num_heads):
    """Return the plan of an attention layer; the width of a head takes precedence over the number of heads."""
    if config.num_head_channels != -1:
        if config.num_head_channels < 1 or channels % config.num_head_channels:
            raise found_expected(
                "--num_head_channels",
                config.num_head_channels,
                f"a divisor of the {channels} channels of an attention layer",
                "Use 32.",
            )
        num_heads = channels // config.num_head_channels
    if num_heads < 1 or channels % num_heads:
        raise found_expected(
            "--num_heads", num_heads, f"a divisor of the {channels} channels of an attention layer", "Use 1, 4 or 8."
        )
    return AttentionPlan(channels, num_heads)


def _input_blocks(config, channel_mult, attention):
    """Return (input blocks, channels of the output of each), from the full to the lowest resolution."""
    blocks = [(ConvPlan(config.in_ch, config.num_channels),)]
    skips = [config.num_channels]  # channels that an output block will receive, one entry per block
    width = config.num_channels
    for level, mult in enumerate(channel_mult):
        for _ in range(config.num_res_blocks):
            layers = [ResBlockPlan(width, mult * config.num_channels)]
            width = mult * config.num_channels
            if 2**level in attention:
                layers.append(_attention(config, width, config.num_heads))
            blocks.append(tuple(layers))
            skips.append(width)
        # a separate block halves the resolution, except after the lowest one
        if level != len(channel_mult) - 1:
            down = ResBlockPlan(width, width, down=True) if config.resblock_updown else DownsamplePlan(width)
            blocks.append((down,))
            skips.append(width)
    return tuple(blocks), skips


def _output_blocks(config, channel_mult, attention, width, skips):
    """Return the output blocks, from the lowest to the full resolution.

    width: of the bottleneck. skips: channels of the input blocks' outputs, each of which joins one output block.
    """
    heads = config.num_heads if config.num_heads_upsample == -1 else config.num_heads_upsample
    blocks = []
    skips = list(skips)
    for level, mult in reversed(list(enumerate(channel_mult))):
        # one block more than on the way down: it takes the output of the downsampling, or of the first convolution
        for block in range(config.num_res_blocks + 1):
            layers = [ResBlockPlan(width + skips.pop(), mult * config.num_channels)]
            width = mult * config.num_channels
            if 2**level in attention:
                layers.append(_attention(config, width, heads))
            # the last block of each resolution but the full one leads to the next larger one
            if level and block == config.num_res_blocks:
                up = ResBlockPlan(width, width, up=True) if config.resblock_updown else UpsamplePlan(width)
                layers.append(up)
            blocks.append(tuple(layers))
    return tuple(blocks)


def _highway_stages(config, poolings):
    """Return (context, localization) of a `HighwayPlan`.

    The base width is a quarter of the network's, because the anchors that version `new` adds to the first
    features are base + base + 2 base wide.
    """
    base = config.num_channels // 4
    cap = max(HIGHWAY_MAX_WIDTH, 2 * base)
    widths = [min(base * 2**stage, cap) for stage in range(poolings + 1)]
    # encoder: twice a convolution per stage; the bottleneck goes back to the width before it
    context = []
    previous = config.image_channels
    for width in widths[:-1]:
        context.append(((previous, width), (width, width)))
        previous = width
    context.append(((previous, widths[-1]), (widths[-1], previous)))
    # decoder: the first convolution sees the upsampled features and as many of the encoder
    localization = []
    for stage in range(poolings):
        skip = widths[poolings - 1 - stage]
        following = widths[max(poolings - 2 - stage, 0)]
        localization.append(((2 * skip, skip), (skip, following)))
    return tuple(context), tuple(localization)


def _highway_new(config):
    """Return the highway of version `new`, which always has five poolings."""
    context, localization = _highway_stages(config, HIGHWAY_POOLINGS)
    # decoder stage 0 works at 1/16 of the image's side, stage 1 at 1/8, ...; the last one works at the full side
    scales = tuple(2 ** (HIGHWAY_POOLINGS - 1 - stage) for stage in range(HIGHWAY_POOLINGS - 1))
    return HighwayPlan(
        context, localization, config.highway_dropout, config.mask_channels, config.use_checkpoint, anchor_scales=scales
    )


def _highway_v1(config, input_blocks, width):
    """Return the highway of version `1`.

    It has one pooling for each downsampling of the diffusion network, so that both meet at the same resolutions; at
    256 and 512 px these are the original's five. width: of the diffusion network's bottleneck.
    """
    downsamplings = [
        index
        for index, block in enumerate(input_blocks)
        if isinstance(block[0], DownsamplePlan) or getattr(block[0], "down", False)
    ]
    if not downsamplings:
        raise found_expected(
            "--channel_mult",
            f"{config.channel_mult!r} with --version 1",
            "two multipliers or more",
            "Write for example 1,2, or use --version new.",
        )
    context, localization = _highway_stages(config, len(downsamplings))
    joins = []
    for stage, block in enumerate(downsamplings[:-1]):
        channels = input_blocks[block][0].channels
        highway_channels = context[stage][-1][-1]
        side = config.image_size // 2 ** (stage + 1)  # after stage + 1 poolings
        joins.append(JoinPlan(block, channels, highway_channels, side))
    return HighwayPlan(
        context,
        localization,
        config.highway_dropout,
        config.mask_channels,
        config.use_checkpoint,
        joins=tuple(joins),
        embed=(context[-1][-1][-1], width),
    )

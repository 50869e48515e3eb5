"""The settings of MedSegDiff's network; names and defaults are the original's wherever it has the setting."""

from dataclasses import dataclass

from guided_diffusion_core.networks.family import MOST_PIXELS, NetworkConfig
from guided_diffusion_core.options import option


@dataclass(frozen=True)
class ModelConfig(NetworkConfig):
    """The architecture of the network: all that its parameters' names and shapes depend on, and
    the dropout rates."""

    image_size: int = option(64, "side of the square network input in pixels, a multiple of 32", high=MOST_PIXELS)
    num_channels: int = option(128, "base width of the network, a multiple of 32", high=8192)
    num_res_blocks: int = option(2, "residual blocks per resolution", high=64)
    num_heads: int = option(4, "attention heads")
    num_heads_upsample: int = option(-1, "attention heads on the way up; -1: as num_heads")
    num_head_channels: int = option(-1, "channels per attention head, instead of num_heads; -1: unused")
    attention_resolutions: str = option("16,8", "resolutions in pixels at which attention works, separated by commas")
    channel_mult: str = option("", "width multipliers per resolution, separated by commas; empty: chosen by image size")
    dropout: float = option(0.0, "dropout rate in the residual blocks, 0 to 1", low=0, below=1)
    use_checkpoint: bool = option(
        False,
        "recompute activations in the backward pass instead of keeping them: half the memory or less, for a "
        "second forward pass; the same numbers",
    )
    use_scale_shift_norm: bool = option(True, "time embedding scales and shifts (True) or is added (False)")
    resblock_updown: bool = option(False, "residual blocks for down- and upsampling")
    use_new_attention_order: bool = option(False, "split queries, keys and values before the heads")
    version: str = option(
        "new", "network version: new adds the highway's features at the input, 1 at the bottleneck", ("new", "1")
    )
    highway_dropout: float = option(
        0.5, "channel dropout rate in the encoder of the highway network, 0 to 1", low=0, below=1
    )

"""The golden values of the paper's network in `tests/golden/paper`: their settings, weights and inputs."""

import json

import numpy as np
from support.golden_rules import GOLDEN, golden_weight

from guided_diffusion_core.networks.paper.settings import PaperConfig
from guided_diffusion_core.networks.registry import state_shapes

FOLDER = GOLDEN / "paper"
# What the names of two files promise, which the package itself has no arguments for.
OWN = {"no_filter": {"ff_parser": "none"}, "static_encoding": {"conditioning": "static"}}


def paper_settings(arguments, upstream_vit, name=""):
    """Return the `PaperConfig` of the package's arguments.

    arguments:    dict of its `Unet`. name: of the golden file.
    upstream_vit: the transformers had 4 heads and 4 layers, whatever the arguments say.
    """
    vit = arguments["conditioning_kwargs"]
    full = [str(level) for level, is_full in enumerate(arguments["full_self_attn"]) if is_full]
    own = [changed for ending, changed in OWN.items() if name.endswith(ending)]
    settings = {
        "image_size": arguments["image_size"],
        "in_ch": arguments["input_img_channels"] + arguments["mask_channels"],
        "mask_channels": arguments["mask_channels"],
        "dim": arguments["dim"],
        "dim_mults": ",".join(map(str, arguments["dim_mults"])),
        "heads": arguments["attn_heads"],
        "dim_head": arguments["attn_dim_head"],
        "full_attention": ",".join(full),
        "mid_depth": arguments["mid_transformer_depth"],
        "groups": arguments["resnet_block_groups"],
        "ff_parser": "dynamic" if arguments["dynamic_ff_parser_attn_map"] else "static",
        "skip_conditions": arguments["skip_connect_condition_fmaps"],
        "self_condition": arguments["self_condition"],
        "vit_heads": 4 if upstream_vit else vit["heads"],
        "vit_depth": 4 if upstream_vit else vit["depth"],
        "vit_dim_head": vit["dim_head"],
        "vit_patch": vit["patch_size"],
    }
    return PaperConfig(**settings | (own[0] if own else {}))


class GoldenForward:
    """A file of golden outputs and module results.

    settings:             `PaperConfig`. is_float64: the values were computed in float64.
    x, t, self_condition: the inputs of the forward pass, numpy.
    """

    def __init__(self, path):
        self.values = np.load(path)
        arguments = json.loads(str(self.values["config"]))
        self.settings = paper_settings(arguments, bool(self.values["upstream_vit"]), path.stem)
        self.is_float64 = self.values["out"].dtype == np.float64
        self.t = self.values["timesteps"]
        generator = np.random.RandomState(int(self.values["input_seed"]))
        size = self.settings.image_size
        shape = (len(self.t), self.settings.mask_channels, size, size)
        mask = generator.standard_normal(shape)
        image = generator.standard_normal((len(self.t), self.settings.image_channels, size, size))
        before = generator.uniform(-1, 1, shape)
        self.x = np.concatenate([image, mask], axis=1).astype(np.float32)
        self.self_condition = before.astype(np.float32) if self.settings.self_condition else None

    def weights(self):
        """Return name -> array of every parameter."""
        return {name: golden_weight(name, shape) for name, shape in state_shapes(self.settings).items()}

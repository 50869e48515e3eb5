"""Read the settings of the paper's network from the names and shapes of its state dict."""

import re

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks.family import Inferred
from guided_diffusion_core.networks.paper.settings import DYNAMIC, LAST, NONE, STATIC, PaperConfig

MAP = "conditioners.0.ff_parser_attn_map"
VIT = "conditioners.0.to_dynamic_ff_parser_attn_map"


def infer(shapes, given, where):
    """Return the `Inferred` settings of a paper's network, or None if the weights are not of it.

    shapes: dict name -> shape of a state dict, names without prefix.
    given:  settings on the command line, by name of their flags.
    where:  the file, for errors.

    The weights show everything but the number of heads, of which only the product with their channels is visible, the
    groups of the norms, and without a map the size of the images: these are `given`, or the defaults of lucidrains'
    package. Raises `UserError` for a state dict of an older version of it.
    """
    if "cond_init_conv.weight" not in shapes:
        return None
    if any(name.startswith("mid_attn.") for name in shapes):
        raise found_expected(
            where, "mid_attn.*, as before version 0.2.0 of med-seg-diff-pytorch", "mid_transformer.*", "Train it again."
        )
    if "mid_transformer.layers.0.1.fn.1.weight" not in shapes:
        raise found_expected(
            where,
            "a transformer without layer norms, as in version 0.2.0 and 0.2.1 of med-seg-diff-pytorch",
            "mid_transformer.layers.0.1.fn.1.weight",
            "Train it again.",
        )
    shown = _visible(shapes)
    heads = given.get("paper.heads", PaperConfig.heads)
    shown["paper.dim_head"] = _head(shapes, "mid_transformer.layers.0.0.fn", heads, "--paper.heads", where)
    if shown["paper.ff_parser"] == DYNAMIC:
        heads = given.get("paper.vit_heads", PaperConfig.vit_heads)
        shown["paper.vit_dim_head"] = _head(
            shapes, f"{VIT}.transformer.layers.0.0.fn", heads, "--paper.vit_heads", where
        )
    return Inferred(shown, {})


def _visible(shapes):
    """Return the settings that the shapes show, by name of their flags."""
    dim = shapes["cond_init_conv.weight"][0]
    levels = _count(shapes, r"downs\.(\d+)\.")
    dims = [dim, *(shapes[f"downs.{level}.0.block1.proj.weight"][1] for level in range(1, levels))]
    dims.append(shapes[f"downs.{levels - 1}.3.weight"][0])
    masks = shapes["final_conv.weight"][0]
    full = [level for level in range(levels) if f"downs.{level}.2.fn.to_out.weight" in shapes]
    found = {
        "mask_channels": masks,
        "in_ch": shapes["cond_init_conv.weight"][1] + masks,
        "learn_sigma": False,
        "paper.dim": dim,
        "paper.dim_mults": ",".join(str(width // dim) for width in dims[1:]),
        "paper.full_attention": _full_attention(full, levels),
        "paper.mid_depth": _count(shapes, r"mid_transformer\.layers\.(\d+)\."),
        "paper.self_condition": shapes["init_conv.weight"][1] == 2 * masks,
        "paper.skip_conditions": shapes["ups.0.0.block1.proj.weight"][1] == dims[-1] + 2 * dims[-2],
        "paper.conditioning": DYNAMIC if "conditioners.0.norm_input.g" in shapes else STATIC,
        "paper.ff_parser": NONE,
    }
    if MAP in shapes:
        found["paper.ff_parser"] = STATIC
        found["image_size"] = shapes[MAP][-1]
    if f"{VIT}.pos_emb" in shapes:
        found["paper.ff_parser"] = DYNAMIC
        found["paper.vit_depth"] = _count(shapes, re.escape(VIT) + r"\.transformer\.layers\.(\d+)\.")
        found |= _patches(shapes, levels)
    return found


def _full_attention(full, levels):
    if full == [levels - 1]:
        return LAST
    return ",".join(map(str, full)) or NONE


def _patches(shapes, levels):
    """Return the patches of the transformers: nothing if they are those of the default."""
    sides = []
    for level in range(levels):
        whole = shapes[f"conditioners.{level}.ff_parser_attn_map"][-1]
        tokens = shapes[f"conditioners.{level}.to_dynamic_ff_parser_attn_map.pos_emb"][-1]
        sides.append(whole // tokens)
    return {"paper.vit_patch": sides[0]} if len(set(sides)) == 1 else {"paper.vit_patch": 0}


def _count(shapes, pattern):
    """Return the number of the parts that a pattern numbers."""
    numbers = [int(match.group(1)) for name in shapes if (match := re.match(pattern, name))]
    return max(numbers) + 1


def _head(shapes, name, heads, flag, where):
    """Return the channels of one of `heads` heads of an attention."""
    width = shapes[f"{name}.to_qkv.weight"][0] // 3
    if width % heads:
        raise found_expected(
            flag,
            heads,
            f"a divisor of {width}, the channels of all heads in {where}",
            "Give the number of the training.",
        )
    return width // heads

"""Infer the settings of MedSegDiff's network from the names and shapes of its state dict.

Every number is read from several tensors and the most frequent reading wins. A file with a missing or
misshapen tensor is therefore still recognised, and its faults can be listed one by one.
"""

import re
from collections import Counter

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.networks.family import Inferred
from guided_diffusion_core.networks.medsegdiff.plan import default_channel_mult
from guided_diffusion_core.networks.medsegdiff.settings import ModelConfig
from guided_diffusion_core.networks.medsegdiff.state_shapes import BOTTLENECK_EMBED

# Settings that names and shapes show.
VISIBLE = (
    "version",
    "in_ch",
    "mask_channels",
    "num_channels",
    "num_res_blocks",
    "channel_mult",
    "attention_resolutions",
    "use_scale_shift_norm",
    "resblock_updown",
    "learn_sigma",
)
FOURIER_FILTERS = "hwm.ffparser."  # of version `1`; a network of few resolutions has none
ORIGINAL_SIZES = (64, 128, 256)  # smallest of the original's image sizes for each channel_mult

_UPSAMPLER = re.compile(r"output_blocks\.(\d+)\.[12]\.(conv|in_layers\.\d)\.")


def infer(version, shapes, given, where):
    """Return the `Inferred` settings of a network of one version, or None if the weights are not of it.

    shapes: dict name -> shape of a state dict, names without prefix.
    given:  settings on the command line, by name.
    where:  the file, for errors.
    Raises `UserError` if a given setting contradicts the weights.
    """
    if not any(name.startswith("input_blocks.") for name in shapes):
        return None
    seen = _visible(shapes)
    if seen["version"] != version:
        return None
    if "label_emb.weight" in shapes:
        raise found_expected(
            where, "a class-conditional network (label_emb)", "one without class labels", "Train it without them."
        )
    # Convolutions fit images of any size. Only the Fourier filters of version `1` show the size of the training.
    filtered = _filtered_size(shapes)
    if filtered and given.get("image_size", filtered) != filtered:
        raise found_expected(
            "--image_size", given["image_size"], f"{filtered}, which the weights of {where} show", "Leave the flag out."
        )
    image_size = filtered or given.get("image_size", _usual_size(seen["channel_mult"]))
    levels = seen.pop("attention_levels")
    seen["attention_resolutions"] = ",".join(str(image_size // 2**level) for level in levels)
    _check_given(given, seen, image_size, where)
    # An empty text means the default multipliers.
    if _numbers(seen["channel_mult"]) == default_channel_mult(image_size):
        seen["channel_mult"] = ""
    if "attention_resolutions" in given:
        seen["attention_resolutions"] = given["attention_resolutions"]  # the same ones in another order
    size = {"image_size": image_size}
    return Inferred({**seen, **size}, {}) if filtered else Inferred(seen, size)


def _visible(shapes):
    """Return the settings of `VISIBLE`, with the levels of attention instead of attention_resolutions."""
    width = _vote(
        [
            _dim(shapes, "input_blocks.0.0.weight", 0),
            _dim(shapes, "time_embed.0.weight", 1),
            _dim(shapes, "out.0.weight", 0),
            _dim(shapes, "out.0.bias", 0),
        ],
        ModelConfig.num_channels,
    )
    # The highway sees only the image; the first convolution sees the image and the noised mask.
    images = _dim(shapes, "hwm.conv_blocks_context.0.blocks.0.conv.weight", 1)
    inputs = _dim(shapes, "input_blocks.0.0.weight", 1)
    masks = _vote([_dim(shapes, "hwm.seg_outputs.0.weight", 0), images and inputs and inputs - images], 1)
    in_ch = _vote([inputs, images and images + masks], ModelConfig.in_ch)
    outputs = _vote([_dim(shapes, "out.2.weight", 0), _dim(shapes, "out.2.bias", 0)], 1)
    # A resolution has num_res_blocks + 1 blocks in both directions. On the way down, the last one is the downsampling.
    per_level, levels, updown = _levels(shapes)
    mult = []
    attention = []
    for level in range(levels):
        blocks = [f"input_blocks.{1 + level * per_level + index}" for index in range(per_level - 1)]
        layers = [
            f"{block}.0.{layer}"
            for block in blocks
            for layer in ("out_layers.3.weight", "out_layers.3.bias", "in_layers.2.bias")
        ]
        level_width = _vote([_dim(shapes, layer, 0) for layer in layers], width)
        mult.append(max(1, round(level_width / width)))
        # layer 0 of a block is the residual block, layer 1 the attention
        if any(name.startswith(f"{block}.1.") for block in blocks for name in shapes):
            attention.append(level)
    return {
        "version": "1" if any(name.startswith((FOURIER_FILTERS, BOTTLENECK_EMBED)) for name in shapes) else "new",
        "in_ch": in_ch,
        "mask_channels": masks,
        "num_channels": width,
        "num_res_blocks": max(1, per_level - 1),
        "channel_mult": ",".join(map(str, mult)),
        "attention_levels": attention,
        "use_scale_shift_norm": _scales_and_shifts(shapes),
        "resblock_updown": updown,
        "learn_sigma": outputs == 2 * masks,
    }


def _levels(shapes):
    """Return (blocks per resolution on the way up, number of resolutions, True if residual blocks resample).

    Each resolution but the last ends in a block with an upsampler.
    """
    blocks = [int(name.split(".")[1]) for name in shapes if name.startswith("output_blocks.")]
    count = max(blocks, default=0) + 1
    found = [match for match in map(_UPSAMPLER.match, shapes) if match]
    ends = {int(match[1]) for match in found}
    # the first upsampler is in the last block of the lowest resolution
    per_level = max(2, min(ends) + 1 if ends else count)
    levels = max(1, round(count / per_level))
    updown = _vote([match[2] != "conv" for match in found], False)
    return per_level, levels, updown


def _scales_and_shifts(shapes):
    """Return True if the time embedding of a residual block has two numbers for each channel."""
    ending = ".emb_layers.1.weight"
    votes = []
    for name in shapes:
        if name.endswith(ending):
            width = _dim(shapes, f"{name.removesuffix(ending)}.out_layers.0.weight", 0)
            votes.append(_dim(shapes, name, 0) == 2 * width if width else None)
    return _vote(votes, ModelConfig.use_scale_shift_norm)


def _dim(shapes, name, axis):
    """Return one length of a tensor, None if there is none."""
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else None


def _vote(readings, default):
    """Return the most frequent reading that is not None, the first of several; the default if there is none."""
    counts = Counter(reading for reading in readings if reading is not None)
    return counts.most_common(1)[0][0] if counts else default


def _filtered_size(shapes):
    """Return the image size that the first Fourier filter of version `1` shows, or None without a filter."""
    # the filter (C, H, H // 2 + 1, 2) works after the first pooling, at half the size
    side = _dim(shapes, f"{FOURIER_FILTERS}0.complex_weight", 1)
    return side and 2 * side


def _usual_size(channel_mult):
    """Return the smallest of the original's image sizes with these multipliers, otherwise its default."""
    fitting = [size for size in ORIGINAL_SIZES if default_channel_mult(size) == _numbers(channel_mult)]
    return fitting[0] if fitting else ModelConfig.image_size


def _numbers(text):
    """Return the numbers of a text such as "1,2,4", or () for any other text."""
    return tuple(int(part) for part in text.split(",")) if re.fullmatch(r"\d+(,\d+)*", text) else ()


def _check_given(given, seen, image_size, where):
    """Refuse a setting that the weights contradict; `UserError`."""
    # Texts that mean the same are equal: "" and the default multipliers, resolutions in another order.
    meanings = {
        "channel_mult": lambda text: _numbers(text) or default_channel_mult(image_size),
        "attention_resolutions": lambda text: set(_numbers(text)),
    }
    for name in VISIBLE:
        meaning = meanings.get(name, lambda value: value)
        if name in given and meaning(given[name]) != meaning(seen[name]):
            raise found_expected(
                f"--{name}",
                repr(given[name]),
                f"{seen[name]!r}, which the weights of {where} show",
                "Leave the flag out.",
            )

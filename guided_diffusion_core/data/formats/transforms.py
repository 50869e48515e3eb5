"""Resizing and intensity rules, on numpy arrays whose last two axes are the picture."""

from functools import lru_cache

import numpy as np

ZSCORE_RULE = (
    "z-score per volume and modality: (v - mean) / standard deviation, both over the voxels above 0; all others 0"
)
ZSCORE_ALL_RULE = "z-score per volume and channel: (v - mean) / standard deviation, both over all voxels"
RGB_RULE = "RGB / 255"


@lru_cache(maxsize=64)
def _linear_weights(source, target):
    """Matrix (target, source) float32 that resizes one axis with the triangle filter.

    Pixel centres lie at (i + 1/2). Shrinking widens the triangle by source / target, which is the
    anti-aliasing; growing interpolates linearly between neighbours. Beyond the edge the
    weights are left out and the rest is scaled to 1, the rule of Pillow's BILINEAR.
    """
    scale = source / target
    width = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale
    positions = np.arange(source)[None, :] + 0.5
    weights = np.clip(1.0 - np.abs(positions - centres) / width, 0.0, None)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights.setflags(write=False)  # shared by all callers through the cache
    return weights


def resize_linear(pictures, shape):
    """Resize pictures by the triangle filter (bilinear, anti-aliased), all in two matrix products.

    pictures: (..., H, W), any real type. shape: (height, width) of the result.
    Returns float32 (..., height, width); values stay within the range of the input.
    """
    pictures = np.asarray(pictures, np.float32)
    if pictures.shape[-2:] == tuple(shape):
        return pictures.copy()
    rows = _linear_weights(pictures.shape[-2], shape[0])  # (height, H)
    columns = _linear_weights(pictures.shape[-1], shape[1])  # (width, W)
    return np.matmul(rows, pictures @ columns.T)  # (..., H, W) -> (..., H, width) -> (..., height, width)


def resize_nearest(pictures, shape):
    """Resize pictures by taking the pixel under each new centre; values and type are kept.

    pictures: (..., H, W). shape: (height, width) of the result.
    """
    rows, columns = (
        (2 * np.arange(target) + 1) * source // (2 * target)  # whole numbers: exact on the borders of pixels
        for source, target in zip(pictures.shape[-2:], shape)
    )
    return pictures[..., rows[:, None], columns[None, :]]


def zscore(volume):
    """Scale a volume by `ZSCORE_RULE`.

    volume: any shape, intensities from 0. Returns float32 of that shape. A volume without voxels
    above 0, or with a single value, becomes 0.
    """
    volume = np.asarray(volume, np.float32)
    inside = volume > 0
    values = volume[inside].astype(np.float64)
    if values.size == 0:
        return np.zeros_like(volume)
    spread = values.std() or 1.0
    scaled = np.zeros_like(volume)
    scaled[inside] = (values - values.mean()) / spread
    return scaled


def zscore_all(values):
    """Scale a volume or picture by `ZSCORE_ALL_RULE`; one of a single value becomes 0.

    values: any shape. Returns float32 of that shape. Raises ValueError if a value is not finite.
    """
    values = _finite(values)
    spread = values.std() or 1.0
    return ((values - values.mean()) / spread).astype(np.float32)


def clip_ct(values):
    """Hounsfield units as (v clipped to [-1000, 1000]) / 1000, float32. Raises ValueError for values that are
    not finite."""
    return np.clip(_finite(values), -1000, 1000).astype(np.float32) / 1000


def to_unit_range(values):
    """(v - smallest) / (largest - smallest), float32; a single value becomes 0. Raises ValueError as `clip_ct`."""
    values = _finite(values)
    return ((values - values.min()) / (np.ptp(values) or 1.0)).astype(np.float32)


def by_255(values):
    """v / 255, float32. Raises ValueError as `clip_ct`."""
    return (_finite(values) / 255).astype(np.float32)


def unchanged(values):
    """The values, float32. Raises ValueError as `clip_ct`."""
    return _finite(values).astype(np.float32)


# Names of channels of nnU-Net (lower case) that ask for a rule of their own. nnU-Net clips CT to percentiles of the
# training set's foreground; a fixed window needs no such fingerprint, which sampling would have to be given again.
CHANNEL_RULES = {
    "ct": ("Hounsfield units clipped to [-1000, 1000], / 1000", clip_ct),
    "nonorm": ("as stored", unchanged),
    "rescale_to_0_1": ("scaled to [0, 1] per case", to_unit_range),
    "rgb_to_0_1": ("/ 255", by_255),
}


def channel_rule(name):
    """(rule in words, function) for a channel of that name in nnU-Net's dataset.json; z-score by default."""
    return CHANNEL_RULES.get(name.lower(), ("z-score over all values", zscore_all))


def _finite(values):
    values = np.asarray(values, np.float64)
    broken = np.count_nonzero(~np.isfinite(values))
    if broken:
        raise ValueError(f"{broken} values that are not finite")
    return values

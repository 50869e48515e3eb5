"""Resize pictures and scale intensities. The last two axes of an array are the picture."""

from functools import lru_cache

import numpy as np

ZSCORE_RULE = (
    "z-score per volume and modality: (v - mean) / standard deviation, both over the voxels above 0; all others 0"
)
ZSCORE_ALL_RULE = "z-score per volume and channel: (v - mean) / standard deviation, both over all voxels"
RGB_RULE = "RGB / 255"
FINITE_ADVICE = "Set them to the value of the background, or replace the file."


@lru_cache(maxsize=64)
def _linear_weights(source, target):
    """Return the matrix (target, source) float32 that resizes one axis with the triangle filter.

    Pixel centres lie at i + 1/2. Shrinking widens the triangle by source / target to avoid aliasing; growing
    interpolates linearly between neighbours. Weights outside the picture are dropped and the remaining ones are
    scaled to a sum of 1, like BILINEAR in Pillow.
    """
    scale = source / target
    width = max(scale, 1.0)
    centres = (np.arange(target)[:, None] + 0.5) * scale  # (target, 1), in source pixels
    positions = np.arange(source)[None, :] + 0.5  # (1, source)
    weights = np.clip(1.0 - np.abs(positions - centres) / width, 0.0, None)  # (target, source)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights.setflags(write=False)  # shared by all callers through the cache
    return weights


def resize_linear(pictures, shape):
    """Resize pictures with the triangle filter (bilinear, anti-aliased) in two matrix products.

    pictures: (..., H, W), any real type.
    shape:    (height, width) of the result.
    Returns float32 (..., height, width). The values stay within the range of the input.
    """
    pictures = np.asarray(pictures, np.float32)
    if pictures.shape[-2:] == tuple(shape):
        return pictures.copy()
    rows = _linear_weights(pictures.shape[-2], shape[0])  # (height, H)
    columns = _linear_weights(pictures.shape[-1], shape[1])  # (width, W)
    return np.matmul(rows, pictures @ columns.T)  # (..., H, W) -> (..., H, width) -> (..., height, width)


def resize_nearest(pictures, shape):
    """Resize pictures by taking the pixel under each new centre. Values and type do not change.

    pictures: (..., H, W).
    shape:    (height, width) of the result.
    """
    rows = _nearest_indices(pictures.shape[-2], shape[0])
    columns = _nearest_indices(pictures.shape[-1], shape[1])
    return pictures[..., rows[:, None], columns[None, :]]  # (..., height, width)


def _nearest_indices(source, target):
    """Return the source index under the centre of each of the `target` new pixels of an axis, (target,)."""
    # floor((i + 1/2) * source / target) in whole numbers, so that centres on a pixel's border do not round
    return (2 * np.arange(target) + 1) * source // (2 * target)


def zscore(volume):
    """Scale a volume by `ZSCORE_RULE`.

    volume: any shape, intensities from 0.
    Returns float32 of the same shape. A volume with no voxel above 0, or with a single value, becomes 0.
    """
    volume = np.asarray(volume, np.float32)
    inside = volume > 0
    values = volume[inside].astype(np.float64)
    if values.size == 0:
        return np.zeros_like(volume)
    spread = values.std() or 1.0  # a single value: 0 / 1 instead of 0 / 0
    scaled = np.zeros_like(volume)
    scaled[inside] = (values - values.mean()) / spread
    return scaled


def zscore_all(values):
    """Scale a volume or picture by `ZSCORE_ALL_RULE`.

    values: any shape.
    Returns float32 of the same shape. An array with a single value becomes 0.
    Raises ValueError if a value is not finite.
    """
    values = _finite(values)
    spread = values.std() or 1.0
    return ((values - values.mean()) / spread).astype(np.float32)


def clip_ct(values):
    """Return Hounsfield units clipped to [-1000, 1000] and divided by 1000, float32.

    Raises ValueError if a value is not finite.
    """
    return np.clip(_finite(values), -1000, 1000).astype(np.float32) / 1000


def to_unit_range(values):
    """Return (v - smallest) / (largest - smallest), float32. An array with a single value becomes 0.

    Raises ValueError if a value is not finite.
    """
    values = _finite(values)
    extent = np.ptp(values) or 1.0
    return ((values - values.min()) / extent).astype(np.float32)


def by_255(values):
    """Return v / 255, float32. Raises ValueError if a value is not finite."""
    return (_finite(values) / 255).astype(np.float32)


def unchanged(values):
    """Return the values as float32. Raises ValueError if a value is not finite."""
    return _finite(values).astype(np.float32)


# nnU-Net's channel names (lower case) that do not use the z-score -> (rule in words, function).
# nnU-Net clips CT to percentiles of the foreground of the training set. The fixed window here needs no such
# statistics, which sampling would otherwise have to be given again.
CHANNEL_RULES = {
    "ct": ("Hounsfield units clipped to [-1000, 1000], / 1000", clip_ct),
    "nonorm": ("as stored", unchanged),
    "rescale_to_0_1": ("scaled to [0, 1] per case", to_unit_range),
    "rgb_to_0_1": ("/ 255", by_255),
}


def channel_rule(name):
    """Return (rule in words, function) for a channel name of nnU-Net's dataset.json; the default is the z-score."""
    return CHANNEL_RULES.get(name.lower(), ("z-score over all values", zscore_all))


def _finite(values):
    """Return the values as float64. Raises ValueError if a value is not finite."""
    values = np.asarray(values, np.float64)
    require_finite(values)
    return values


def require_finite(values):
    """Raise ValueError if a value is NaN or infinite."""
    broken = 0
    if values.dtype.kind == "f":
        broken = np.count_nonzero(~np.isfinite(values))
    if broken:
        raise ValueError(f"{broken} values that are not finite")

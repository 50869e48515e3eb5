"""Read picture masks: one reader for all layouts, for training, scoring and checks."""

import numpy as np
from PIL import Image

from guided_diffusion_core.data.formats.binary_masks import BORDER, Remark, levels_of
from guided_diffusion_core.data.formats.rasters import read_raster, require_black_zero
from guided_diffusion_core.data.formats.transforms import resize_linear, resize_nearest
from guided_diffusion_core.errors import found_expected


def read_masks(path, label_map, size=None, upstream_compat=False):
    """Read the masks of a picture: bool (K, H, W), or (K, size, size) if a size is given.

    label_map:       `LabelMap` with K names. If it is binary, the mask is what differs from the background
                     (`binary_masks`); otherwise the stored values count (`label_values`).
    upstream_compat: with a size, resize bilinearly and take all that is above zero, like the original.
    Raises `UserError` for a file that is not one image, and for masks that `masks_of` refuses.
    """
    raster = read_raster(path)
    resizes_levels = upstream_compat and size is not None
    if label_map.is_binary and resizes_levels:
        levels = levels_of(raster, path, False, label_map.threshold).values
        resized = Image.fromarray(levels).resize((size, size), Image.Resampling.BILINEAR)
        return (np.asarray(resized) > 0)[None].repeat(len(label_map), axis=0)
    masks = masks_of(raster, path, label_map)
    if size is None:
        return masks
    shape = (size, size)
    if resizes_levels:
        return resize_linear(masks, shape) > 0
    return resize_nearest(masks, shape)


def masks_of(raster, where, label_map):
    """Return the masks of a `Raster`, bool (K, H, W).

    where: the file, for errors.
    Raises `UserError` for a binary mask whose foreground is not clear, and for values that the map does not know.
    """
    if label_map.is_binary:
        mask = levels_of(raster, where, label_map.plain, label_map.threshold).foreground(where)
        return mask[None].repeat(len(label_map), axis=0)
    values = label_values(raster, where)
    if raster.has_palette and BORDER not in label_map.allowed and (values == BORDER).any():
        raise found_expected(
            where,
            f"the index {BORDER} in a palette, as PASCAL VOC marks the borders of objects",
            "only indices of labels and of the background",
            f'Count it as one of them: for example, write "background": [0, {BORDER}] in labels.json.',
        )
    return label_map.masks(values, where)


def remarks_on(raster, where, label_map):
    """Return what deserves a warning in the masks of a `Raster`, a tuple of `Remark`. Raises like `masks_of`."""
    if not label_map.is_binary:
        return ()
    levels = levels_of(raster, where, label_map.plain, label_map.threshold)
    found = len(np.unique(levels.values))
    if found <= 2:
        return levels.remarks
    return (
        *levels.remarks,
        Remark(
            "grey mask",
            f"{found} levels from background to foreground",
            "two",
            "Write masks without lossy compression and without smoothing.",
        ),
    )


def label_values(raster, where):
    """Return the stored values of a label picture, (H, W).

    Grey values of any depth count as stored, a picture with a palette counts by its indices, and a colour picture
    is accepted if all its colours are grey.
    Raises `UserError` for a picture that is coloured or partly transparent.
    """
    require_black_zero(raster, where)
    if raster.has_palette:
        return raster.indices
    values = raster.values
    if values.ndim == 2:
        return values.astype(np.uint8) if values.dtype == bool else values
    has_alpha = values.shape[2] in (2, 4)
    colours = values[..., :-1] if has_alpha else values
    is_coloured = (colours != colours[..., :1]).any()
    if values.shape[2] > 4 or is_coloured:
        raise found_expected(
            where,
            f"a mask in colour ({values.shape[2]} channels)",
            "grey values or a palette, with one value for each label",
            "Write the numbers of the labels to a grey PNG.",
        )
    if has_alpha and (values[..., -1] != values[0, 0, -1]).any():
        raise found_expected(
            where,
            "a mask that is transparent in places",
            "values that are all visible",
            "Save it without transparency.",
        )
    return values[..., 0]

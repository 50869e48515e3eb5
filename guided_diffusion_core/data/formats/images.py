"""Read pictures as network input: JPEG, PNG, TIFF and every other format that Pillow or tifffile opens."""

import numpy as np
from PIL import Image

from guided_diffusion_core.data.formats.rasters import read_raster
from guided_diffusion_core.data.formats.transforms import resize_linear
from guided_diffusion_core.errors import found_expected


def read_picture(path, size):
    """Read an image of any depth as network input: (3, size, size) float32 in [0, 1], resized bilinearly.

    Grey is repeated and transparency is dropped. 8-bit values are divided by 255, 16-bit values by 65535. Floating
    point values must lie in [0, 1]. An EXIF orientation is applied.
    Raises `UserError` for other values and for a file that is not one image.
    """
    raster = read_raster(path)
    if raster.is_eight_bit:
        return _scaled_rgb(raster.image, size)
    return _scaled_values(raster.values, size, path)


def require_picture(raster, where):
    """Raise the `UserError` with which `read_picture` refuses the values of a `Raster`."""
    if not raster.is_eight_bit:
        _white(raster.values, where)


def scale_array(values, size, where):
    """Return the values of a picture as network input, by the rules of `read_picture`.

    values: (H, W, C), C = 1 for grey or 3 for RGB: uint8 or uint16 as stored in a file, or floating point in [0, 1].
    where:  name of the picture in errors. Raises `UserError` for other values.
    """
    if values.dtype == np.uint8:
        image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
        return _scaled_rgb(image, size)
    return _scaled_values(values, size, where)


def _scaled_rgb(image, size):
    resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    channels = np.asarray(resized, np.float32).transpose(2, 0, 1)  # (S, S, 3) -> (3, S, S)
    return np.ascontiguousarray(channels) / 255


def _scaled_values(values, size, where):
    white = _white(values, where)
    planes = values[..., None] if values.ndim == 2 else values  # (H, W) -> (H, W, 1)
    if planes.shape[2] >= 3:
        planes = planes[..., :3]
    else:
        planes = planes[..., :1].repeat(3, axis=2)  # grey, with or without transparency
    channels = planes.transpose(2, 0, 1).astype(np.float32)  # (H, W, 3) -> (3, H, W)
    return resize_linear(channels / white, (size, size))


def _white(values, where):
    """Return the number that stands for white in an array of stored values."""
    kind = values.dtype.kind
    if kind == "u" and values.dtype.itemsize <= 2:
        return np.iinfo(values.dtype).max
    if kind == "f" and values.min() >= 0 and values.max() <= 1:
        return 1
    raise found_expected(
        where,
        f"{values.dtype} values from {values.min():g} to {values.max():g}",
        "8 or 16 bits without sign, or floating point from 0 to 1",
        "Convert the file.",
    )


def channel_values(raster):
    """Return the stored values of a picture by channel, (C, H, W).

    raster: its `Raster`.
    A grey picture has one channel, a coloured one or one with a palette has three. Transparency is dropped.
    """
    values = raster.colours
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)  # (H, W, C) -> (C, H, W)

"""Read 2D images and masks: JPEG, PNG, TIFF and every other format that Pillow or tifffile opens."""

import io

import blobfile as bf
import numpy as np
import tifffile
from PIL import Image

from guided_diffusion_core.data.formats.transforms import resize_linear, resize_nearest
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.files import read_bytes

FOREGROUND = 128  # an 8-bit grey value is foreground from half of 255 on
MAX_LABEL_VALUES = 8  # a mask with soft edges has more distinct values than this
# Pillow's modes of at most 8 bits per channel
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa")
BITS_PER_SAMPLE = 258  # the TIFF tag for the bit depths of the channels

# Broken files make the decoders of Pillow and tifffile raise errors of nearly every class: SyntaxError, TypeError,
# struct.error, DecompressionBombError and more. Only `Exception` covers them all.
_BROKEN = Exception


def image_size(path):
    """Return (height, width) of an image in pixels, read from its header.

    Raises `UserError` for a file that is not an image.
    """
    try:
        with bf.BlobFile(str(path), "rb") as file, Image.open(file) as image:
            return image.height, image.width
    except _BROKEN as error:
        if _is_tiff(path):
            return stored_values(path).shape[:2]
        raise _not_an_image(path, error) from error


def read_rgb(path, size):
    """Read an image as network input: (3, size, size) float32 in [0, 1], resized bilinearly."""
    return _scaled_rgb(decode(path), size)


def _scaled_rgb(image, size):
    resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    channels = np.asarray(resized, np.float32).transpose(2, 0, 1)  # (S, S, 3) -> (3, S, S)
    return np.ascontiguousarray(channels) / 255


def read_picture(path, size):
    """Read an image of any depth as network input: (3, size, size) float32 in [0, 1], resized bilinearly.

    8-bit images are read as in `read_rgb`: grey is repeated and transparency is dropped. 16-bit values are
    divided by 65535. Floating point values must lie in [0, 1].
    Raises `UserError` for other values and for a file that is not an image.
    """
    image = _one_picture(path)
    if image is not None and image.mode in EIGHT_BITS:
        return _scaled_rgb(image, size)
    return _scaled_values(stored_values(path), size, path)


def scale_array(values, size, where):
    """Return the values of a picture as network input, by the rules of `read_picture`.

    values: (H, W, C), C = 1 for grey or 3 for RGB: uint8 or uint16 as stored in a file, or floating point in [0, 1].
    where:  name of the picture in errors. Raises `UserError` for other values.
    """
    if values.dtype == np.uint8:
        image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
        return _scaled_rgb(image, size)
    return _scaled_values(values, size, where)


def _scaled_values(values, size, where):
    scale = _largest_value(values, where)
    planes = values[..., None] if values.ndim == 2 else values  # (H, W) -> (H, W, 1)
    if planes.shape[2] >= 3:
        planes = planes[..., :3]
    else:
        planes = planes[..., :1].repeat(3, axis=2)  # grey, with or without transparency
    channels = planes.transpose(2, 0, 1).astype(np.float32)  # (H, W, 3) -> (3, H, W)
    return resize_linear(channels / scale, (size, size))


def _largest_value(values, where):
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


def channel_values(path):
    """Return the stored values of a picture by channel, (C, H, W).

    A grey picture has one channel, a coloured one or one with a palette has three. Transparency is dropped.
    Raises `UserError` like `stored_values`.
    """
    image = _one_picture(path)
    if image is None:
        values = _tiff_values(path)
    elif image.mode in EIGHT_BITS:
        is_grey = image.mode in ("1", "L", "LA")
        values = np.asarray(image.convert("L" if is_grey else "RGB"))
    else:
        values = np.asarray(image)
    if values.ndim == 2:
        return values[None]
    return values[..., :3].transpose(2, 0, 1)  # (H, W, C) -> (3, H, W)


def stored_values(path):
    """Return the stored values of a picture: (H, W), or (H, W, C) if it has several channels.

    A picture with a palette gives its palette indices.
    Raises `UserError` for a file that is not an image, and for one with several pages.
    """
    image = _one_picture(path)
    return _tiff_values(path) if image is None else np.asarray(image)


def _one_picture(path):
    """Return the PIL image of a file with one page, or None if tifffile has to read the file.

    tifffile reads the TIFF files that Pillow cannot open and those whose bits Pillow would cut off.
    """
    try:
        image = decode(path)
        frames = _frames(image, path)
    except UserError:
        if _is_tiff(path):
            return None
        raise
    if frames > 1:
        raise _several_pages(path, frames)
    if image.format == "TIFF" and image.mode in EIGHT_BITS:
        depths = image.tag_v2.get(BITS_PER_SAMPLE, (1,))
        if max(depths) > 8:  # Pillow opens three channels of 16 bits as "RGB" and drops the lower 8
            return None
    return image


def _frames(image, path):
    try:
        return getattr(image, "n_frames", 1)
    except _BROKEN as error:
        raise _not_an_image(path, error) from error


def _tiff_values(path):
    """Return the values of a TIFF file that Pillow cannot read, for example three channels of 16 bits."""
    try:
        with tifffile.TiffFile(io.BytesIO(read_bytes(path))) as file:
            pages = len(file.pages)
            page = file.pages[0]
            # a broken header may claim any size: check it before memory is allocated
            if page.imagewidth * page.imagelength > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{page.imagewidth} x {page.imagelength} pixels")
            values = page.asarray()
            is_planar = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    except _BROKEN as error:
        raise _not_an_image(path, error) from error
    if pages > 1:
        raise _several_pages(path, pages)
    if is_planar and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)  # (C, H, W) -> (H, W, C)
    if values.ndim not in (2, 3):
        raise found_expected(path, f"an array of shape {values.shape}", "one picture", "Replace the file.")
    return values


def read_masks(path, label_map, size=None, upstream_compat=False):
    """Read the masks of a label picture: bool (K, H, W), or (K, size, size) if a size is given.

    label_map:       `LabelMap` with K names. If it is binary, `read_mask` reads the picture; otherwise the stored
                     values count (`read_labels`).
    upstream_compat: with a size, resize bilinearly and take all that is above zero.
    Raises `UserError` like `read_mask`, and for values that the map does not know.
    """
    if label_map.is_binary:
        mask = read_mask(path, size, upstream_compat, label_map.plain)
        return mask[None].repeat(len(label_map), axis=0)
    masks = label_map.masks(read_labels(path), path)  # (K, H, W)
    if size is None:
        return masks
    shape = (size, size)
    if upstream_compat:
        return resize_linear(masks, shape) > 0
    return resize_nearest(masks, shape)


def read_labels(path):
    """Return the stored values of a label picture, (H, W).

    Grey values of any depth count as stored, a picture with a palette counts by its indices, and a colour picture
    is accepted if all its colours are grey.
    Raises `UserError` for a file that is not an image, and for one that is coloured or partly transparent.
    """
    values = stored_values(path)
    if values.ndim == 2:
        return values.astype(np.uint8) if values.dtype == bool else values
    has_alpha = values.shape[2] in (2, 4)
    colours = values[..., :-1] if has_alpha else values
    is_coloured = (colours != colours[..., :1]).any()
    if values.shape[2] > 4 or is_coloured:
        raise found_expected(
            path,
            f"a mask in colour ({values.shape[2]} channels)",
            "grey values or a palette, with one value for each label",
            "Write the numbers of the labels to a grey PNG.",
        )
    if has_alpha and (values[..., -1] != values[0, 0, -1]).any():
        raise found_expected(
            path, "a mask that is transparent in places", "values that are all visible", "Save it without transparency."
        )
    return values[..., 0]


def read_mask(path, size=None, upstream_compat=False, plain=False):
    """Read a mask as booleans: (H, W), or (size, size) if a size is given.

    All modes are converted to 8-bit grey. A pixel is foreground from half of the largest value on
    (`FOREGROUND`).

    upstream_compat: with a size, apply the original's rule: resize bilinearly and take all that is above zero.
    plain:           for files of unknown origin: accept a mask that holds only 0 and 1, and refuse one with 3 to
                     `MAX_LABEL_VALUES` values, which are labels rather than soft edges and would be merged.
    Raises `UserError` for a file that is not an image, and for a mask with values above 0 that all lie below half
    (labels 0 and 1, for example), because its foreground would be lost without notice.
    """
    image = decode(path)
    if upstream_compat and size is not None:
        resized = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(resized) > 0
    values = np.asarray(image.convert("L"))
    if plain:
        _refuse_labels(values, path)
    if plain and values.max() == 1:
        foreground = values > 0
    else:
        foreground = values >= FOREGROUND
    if values.any() and not foreground.any():
        raise found_expected(
            path, f"mask values of at most {values.max()}", "0 and 255", "Scale the mask so that its foreground is 255."
        )
    return foreground if size is None else resize_nearest(foreground, (size, size))


def _refuse_labels(values, path):
    """Raise `UserError` for a mask whose few distinct values look like labels."""
    found = np.unique(values)
    if 2 < len(found) <= MAX_LABEL_VALUES:
        raise found_expected(
            path,
            f"mask values {', '.join(map(str, found))}",
            "0 and 255, or 0 and 1",
            "If they are labels, name them in labels.json. If they are soft edges, save only two values.",
        )


def decode(path):
    """Return a picture as a decoded PIL image.

    Raises `UserError` for a file that is not a complete image.
    """
    content = read_bytes(path)
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except _BROKEN as error:
        raise _not_an_image(path, error) from error
    return image


def _is_tiff(path):
    return str(path).lower().endswith((".tif", ".tiff"))


def _several_pages(path, pages):
    return found_expected(path, f"{pages} pages or frames", "one picture", "Write each page to a separate file.")


def _not_an_image(path, error):
    return found_expected(
        path, f"no complete image ({error})", "a JPEG or PNG image", "Replace the file, or remove it from the folder."
    )

"""Reading 2D images and masks: JPEG, PNG, TIFF and whatever else Pillow or tifffile opens."""

import io

import blobfile as bf
import numpy as np
import tifffile
from PIL import Image

from guided_diffusion_core.data.formats.transforms import resize_linear, resize_nearest
from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.files import read_bytes

FOREGROUND = 128  # from here on, half of 255, an 8-bit grey value belongs to a mask
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa")  # Pillow's modes
FEW = 8  # a mask with soft edges has more different values
BITS_PER_SAMPLE = 258  # a tag of TIFF

# What a broken file makes Pillow and tifffile raise: SyntaxError, TypeError, DecompressionBombError, ... as their
# decoders happen to meet it.
_BROKEN = Exception


def image_size(path):
    """(height, width) of an image in pixels, from its header. Raises `UserError` for a file
    that is no image."""
    try:
        with bf.BlobFile(str(path), "rb") as file, Image.open(file) as image:
            return image.height, image.width
    except _BROKEN as error:
        if _is_tiff(path):
            return stored_values(path).shape[:2]
        raise _not_an_image(path, error) from error


def read_rgb(path, size):
    """An image as network input: (3, size, size) float32 in [0, 1], resized bilinearly."""
    return _rgb(decode(path), size)


def _rgb(image, size):
    resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    channels = np.asarray(resized, np.float32).transpose(2, 0, 1)  # (S, S, 3) -> (3, S, S)
    return np.ascontiguousarray(channels) / 255


def read_picture(path, size):
    """An image of any depth as network input: (3, size, size) float32 in [0, 1], resized bilinearly.

    8 bits as `read_rgb` (grey is repeated, transparency left out); 16 bits are divided by 65535; floating
    point has to lie in [0, 1]. Raises `UserError` for other values and for a file that is no image.
    """
    image = _one_picture(path)
    if image is not None and image.mode in EIGHT_BITS:
        return _rgb(image, size)
    values = stored_values(path)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        scale = np.iinfo(values.dtype).max
    elif values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:
        scale = 1
    else:
        raise found_expected(
            path,
            f"{values.dtype} values from {values.min():g} to {values.max():g}",
            "8 or 16 bits without sign, or floating point from 0 to 1",
            "Convert the file.",
        )
    planes = values[..., None] if values.ndim == 2 else values
    planes = planes[..., :3] if planes.shape[2] >= 3 else planes[..., :1].repeat(3, axis=2)
    return resize_linear(planes.transpose(2, 0, 1).astype(np.float32) / scale, (size, size))


def channel_values(path):
    """The channels of a picture in their stored values, (C, H, W): one of grey, three of colour or a palette;
    transparency is left out. Raises `UserError` as `stored_values`."""
    image = _one_picture(path)
    if image is not None and image.mode in EIGHT_BITS:
        image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    values = _tiff_values(path) if image is None else np.asarray(image)
    return values[None] if values.ndim == 2 else values[..., :3].transpose(2, 0, 1)


def stored_values(path):
    """The stored values of a picture, (H, W), or (H, W, C) of one with several channels; a palette gives
    its indices. Raises `UserError` for a file that is no image, and for one of several pages."""
    image = _one_picture(path)
    return _tiff_values(path) if image is None else np.asarray(image)


def _one_picture(path):
    """A decoded PIL image of one page, or None for a TIFF file of which Pillow would lose bits or can read
    nothing, which is tifffile's then."""
    try:
        image = decode(path)
        frames = _frames(image, path)
    except UserError:
        if _is_tiff(path):
            return None
        raise
    if frames > 1:
        raise _several_pages(path, frames)
    if image.format == "TIFF" and image.mode in EIGHT_BITS and max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8:
        return None
    return image


def _frames(image, path):
    try:
        return getattr(image, "n_frames", 1)
    except _BROKEN as error:
        raise _not_an_image(path, error) from error


def _tiff_values(path):
    """The values of a TIFF file that Pillow cannot read, such as one of three channels with 16 bits."""
    try:
        with tifffile.TiffFile(io.BytesIO(read_bytes(path))) as file:
            pages, page = len(file.pages), file.pages[0]
            if page.imagewidth * page.imagelength > Image.MAX_IMAGE_PIXELS:  # what a broken header may claim
                raise ValueError(f"{page.imagewidth} x {page.imagelength} pixels")
            values = page.asarray()
            planar = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    except _BROKEN as error:
        raise _not_an_image(path, error) from error
    if pages > 1:
        raise _several_pages(path, pages)
    values = np.moveaxis(values, 0, -1) if planar and values.ndim == 3 else values
    if values.ndim not in (2, 3):
        raise found_expected(path, f"an array of shape {values.shape}", "one picture", "Replace the file.")
    return values


def read_masks(path, label_map, size=None, upstream_compat=False):
    """The masks of a picture of labels, bool (K, H, W), or (K, size, size) if a size is given.

    label_map: `LabelMap` of K names. A binary one reads the picture as `read_mask` does; else the stored
    values count (`read_labels`). upstream_compat: with a size, above zero after a bilinear resize.
    Raises `UserError` as `read_mask`, and for values that the map does not know.
    """
    if label_map.is_binary:
        return read_mask(path, size, upstream_compat, label_map.plain)[None].repeat(len(label_map), axis=0)
    masks = label_map.masks(read_labels(path), path)  # (K, H, W)
    if size is None:
        return masks
    shape = (size, size)
    return resize_linear(masks, shape) > 0 if upstream_compat else resize_nearest(masks, shape)


def read_labels(path):
    """The stored values of a picture of labels, (H, W).

    Grey of any depth counts as it is stored, a palette by its indices, a colour picture if its colours are
    all grey. Raises `UserError` for a file that is no image, and for one in colour or partly transparent.
    """
    values = stored_values(path)
    if values.ndim == 2:
        return values.astype(np.uint8) if values.dtype == bool else values
    has_alpha = values.shape[2] in (2, 4)
    colours = values[..., :-1] if has_alpha else values
    if values.shape[2] > 4 or (colours != colours[..., :1]).any():
        raise found_expected(
            path,
            f"a mask in colour ({values.shape[2]} channels)",
            "grey values or a palette, a value for each label",
            "Write the labels' numbers into a grey PNG.",
        )
    if has_alpha and (values[..., -1] != values[0, 0, -1]).any():
        raise found_expected(
            path, "a mask that is transparent in places", "values that are all visible", "Save it without transparency."
        )
    return values[..., 0]


def read_mask(path, size=None, upstream_compat=False, plain=False):
    """A mask as booleans (H, W), or (size, size) if a size is given.

    Foreground is what reaches half of the largest value, 255 in 8-bit grey, which all other modes
    are turned into. upstream_compat: with a size, everything above zero after a bilinear resize,
    the original's rule. plain: for files of unknown origin; 0 and 1 alone are a mask, too, and up to
    `FEW` grey values are labels rather than soft edges.
    Raises `UserError` for a file that is no image, and for one whose values are all below half
    but not all zero, such as labels 0 and 1, because all its foreground would silently vanish; if plain, also
    for labels, which would silently be merged.
    """
    image = decode(path)
    if upstream_compat and size is not None:
        resized = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(resized) > 0
    values = np.asarray(image.convert("L"))
    foreground = values > 0 if plain and values.max() == 1 else values >= FOREGROUND
    found = np.unique(values) if plain else ()
    if 2 < len(found) <= FEW:
        raise found_expected(
            path,
            f"mask values {', '.join(map(str, found))}",
            "0 and 255, or 0 and 1",
            "If they are labels, name them in labels.json; if soft edges, save two values.",
        )
    if values.any() and not foreground.any():
        raise found_expected(
            path, f"mask values of at most {values.max()}", "0 and 255", "Scale the mask so that its foreground is 255."
        )
    return foreground if size is None else resize_nearest(foreground, (size, size))


def decode(path):
    """A picture as a decoded PIL image. Raises `UserError` for a file that is not a complete one."""
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
    return found_expected(path, f"{pages} pages or frames", "one picture", "Write each page into a file of its own.")


def _not_an_image(path, error):
    return found_expected(
        path, f"no complete image ({error})", "a JPEG or PNG image", "Replace the file, or take it out of the folder."
    )

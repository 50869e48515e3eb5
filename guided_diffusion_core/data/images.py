"""Reading 2D images and masks: JPEG, PNG and whatever else Pillow opens."""
import io

import blobfile as bf
import numpy as np
from PIL import Image, UnidentifiedImageError

from guided_diffusion_core.data.transforms import resize_linear, resize_nearest
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.files import READ_ERRORS, read_bytes

FOREGROUND = 128  # from here on, half of 255, an 8-bit grey value belongs to a mask


def image_size(path):
    """(height, width) of an image in pixels, from its header. Raises `UserError` for a file
    that is no image."""
    try:
        with bf.BlobFile(str(path), "rb") as file, Image.open(file) as image:
            return image.height, image.width
    except (UnidentifiedImageError, *READ_ERRORS) as error:
        raise _not_an_image(path, error) from error


def read_rgb(path, size):
    """An image as network input: (3, size, size) float32 in [0, 1], resized bilinearly."""
    image = decode(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    channels = np.asarray(image, np.float32).transpose(2, 0, 1)  # (S, S, 3) -> (3, S, S)
    return np.ascontiguousarray(channels) / 255


def read_masks(path, label_map, size=None, upstream_compat=False):
    """The masks of a picture of labels, bool (K, H, W), or (K, size, size) if a size is given.

    label_map: `LabelMap` of K names. A binary one reads the picture as `read_mask` does; else the stored
    values count (`read_labels`). upstream_compat: with a size, above zero after a bilinear resize.
    Raises `UserError` as `read_mask`, and for values that the map does not know.
    """
    if label_map.is_binary:
        return read_mask(path, size, upstream_compat, label_map.zero_one)[None].repeat(len(label_map), axis=0)
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
    image = decode(path)
    values = np.asarray(image)
    if values.ndim == 2:
        return values.astype(np.uint8) if values.dtype == bool else values
    colours, alpha = (values, None) if image.mode == "RGB" else (values[..., :-1], values[..., -1])
    if image.mode not in ("RGB", "RGBA", "LA") or (colours != colours[..., :1]).any():
        raise found_expected(path, f"a mask in colour ({image.mode})", "grey values or a palette, one for each label",
                             "Write the labels' numbers into a grey PNG.")
    if alpha is not None and (alpha != alpha.max()).any():
        raise found_expected(path, "a mask that is transparent in places", "values that are all visible",
                             "Save it without transparency.")
    return values[..., 0]


def read_mask(path, size=None, upstream_compat=False, zero_one=False):
    """A mask as booleans (H, W), or (size, size) if a size is given.

    Foreground is what reaches half of the largest value, 255 in 8-bit grey, which all other modes
    are turned into. upstream_compat: with a size, everything above zero after a bilinear resize,
    the original's rule. zero_one: values of 0 and 1 alone are a mask, too.
    Raises `UserError` for a file that is no image, and for one whose values are all below half
    but not all zero, such as labels 0 and 1, because all its foreground would silently vanish.
    """
    image = decode(path)
    if upstream_compat and size is not None:
        resized = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(resized) > 0
    values = np.asarray(image.convert("L"))
    foreground = values > 0 if zero_one and values.max() == 1 else values >= FOREGROUND
    if values.any() and not foreground.any():
        raise found_expected(path, f"mask values of at most {values.max()}", "0 and 255",
                             "Scale the mask so that its foreground is 255.")
    return foreground if size is None else resize_nearest(foreground, (size, size))


def decode(path):
    """A picture as a decoded PIL image. Raises `UserError` for a file that is not a complete one."""
    content = read_bytes(path)
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    # Pillow raises SyntaxError for a PNG with broken chunks, ValueError for some broken headers
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise _not_an_image(path, error) from error
    return image


def _not_an_image(path, error):
    return found_expected(path, f"no complete image ({error})", "a JPEG or PNG image",
                          "Replace the file, or take it out of the folder.")

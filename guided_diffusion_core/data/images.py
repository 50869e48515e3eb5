"""Reading 2D images and masks: JPEG, PNG and whatever else Pillow opens."""
import io

import blobfile as bf
import numpy as np
from PIL import Image, UnidentifiedImageError

from guided_diffusion_core.data.transforms import resize_nearest
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


def read_mask(path, size=None, upstream_compat=False):
    """A mask as booleans (H, W), or (size, size) if a size is given.

    Foreground is what reaches half of the largest value, 255 in 8-bit grey, which all other modes
    are turned into. upstream_compat: with a size, everything above zero after a bilinear resize,
    the original's rule.
    Raises `UserError` for a file that is no image, and for one whose values are all below half
    but not all zero, such as labels 0 and 1, because all its foreground would silently vanish.
    """
    image = decode(path)
    if upstream_compat and size is not None:
        resized = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(resized) > 0
    values = np.asarray(image.convert("L"))
    foreground = values >= FOREGROUND
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

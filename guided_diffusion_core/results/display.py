"""Pictures to look at, not to measure on: network inputs made visible, and outlines of masks."""

import numpy as np
from scipy.ndimage import binary_erosion

from guided_diffusion_core.data.formats.transforms import resize_linear

# RGB of the outlines by label, told apart by colour-blind readers too (Okabe and Ito 2008). From the
# sixth label on the colours repeat.
COLOURS = ((0, 158, 115), (230, 159, 0), (204, 121, 167), (86, 180, 233), (240, 228, 66))
GREY_RANGE = (1.0, 99.0)  # percentiles of a grey image that become black and white
PIXELS_PER_WIDTH = 400  # the outline is one pixel wide in a picture of this many pixels, and grows with it


def as_picture(image):
    """Make an image visible: (C, H, W) -> uint8 (H, W, 3).

    Three channels are RGB in [0, 1]. From any other number of channels the last is shown in grey.
    """
    image = np.asarray(image, np.float32)
    if len(image) == 3:
        shown = np.moveaxis(image, 0, -1)  # (3, H, W) -> (H, W, 3)
    else:
        grey = image[-1]
        black, white = np.percentile(grey, GREY_RANGE)
        grey = (grey - black) / (white - black or 1.0)
        shown = np.repeat(grey[..., None], 3, axis=-1)  # (H, W) -> (H, W, 3)
    return (np.clip(shown, 0.0, 1.0) * 255).round().astype(np.uint8)


def draw_outlines(picture, masks, least=1):
    """Return a copy of a picture with the outline of each mask in a colour of its own.

    picture: uint8 (H, W, 3). masks: bool (K, H, W). Outlines lie inside their mask; later masks are
    drawn over earlier ones. least: the smallest width of an outline in pixels.
    """
    drawn = picture.copy()
    width = max(least, round(max(picture.shape[:2]) / PIXELS_PER_WIDTH))
    for k, mask in enumerate(masks):
        outline = mask & ~binary_erosion(mask, iterations=width)
        drawn[outline] = COLOURS[k % len(COLOURS)]
    return drawn


def resize_picture(picture, shape):
    """Resize a picture, uint8 (H, W, 3), to (height, width)."""
    channels_first = resize_linear(np.moveaxis(picture, -1, 0), shape)  # (3, height, width)
    return np.moveaxis(channels_first, 0, -1).round().astype(np.uint8)


def largest_slice(masks):
    """Return the axial slice with the most pixels in any mask of (K, X, Y, Z), or None if all are empty."""
    area = masks.any(axis=0).sum(axis=(0, 1))  # (Z,)
    return int(area.argmax()) if area.any() else None

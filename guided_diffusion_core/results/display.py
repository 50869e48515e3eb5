"""Pictures to look at, not to measure on: network inputs made visible, and outlines of masks."""

import matplotlib
import numpy as np
from scipy.ndimage import binary_erosion

from guided_diffusion_core.data.formats.transforms import resize_linear

# RGB of the outlines by label, told apart by colour-blind readers too (Okabe and Ito 2008). From the
# sixth label on the colours repeat.
COLOURS = ((0, 158, 115), (230, 159, 0), (204, 121, 167), (86, 180, 233), (240, 228, 66))
SHOWN_RANGE = (1.0, 99.0)  # percentiles of a channel that become black and white
ROUNDING = 1e-3  # resized RGB may leave [0, 1] by this much
# Uncertainties from 0 to the largest standard deviation of values in [0, 1] are shown in the same colours everywhere.
MOST_UNCERTAIN = 0.5
COLOUR_MAP = "magma"
PRACTICALLY_EQUAL = 0.005  # the members of an ensemble hardly differ where no pixel is more uncertain than this
PIXELS_PER_WIDTH = 400  # the outline is one pixel wide in a picture of this many pixels, and grows with it


def as_picture(image):
    """Make an image visible: (C, H, W) -> uint8 (H, W, 3).

    Three channels in [0, 1] are RGB. Three channels of other intensities are shown as red, green and blue, each scaled
    by itself. From any other number of channels the last is shown in grey.
    """
    image = np.asarray(image, np.float32)
    if len(image) != 3:
        shown = _scaled(image[-1:]).repeat(3, axis=0)
    elif image.min() < -ROUNDING or image.max() > 1 + ROUNDING:
        shown = _scaled(image)
    else:
        shown = image
    shown = np.moveaxis(shown, 0, -1)  # (3, H, W) -> (H, W, 3)
    return (np.clip(shown, 0.0, 1.0) * 255).round().astype(np.uint8)


def _scaled(channels):
    """Scale each of the channels (C, H, W) so that `SHOWN_RANGE` of it becomes 0 to 1."""
    black, white = np.percentile(channels, SHOWN_RANGE, axis=(1, 2), keepdims=True)  # (C, 1, 1) each
    extent = np.where(white > black, white - black, 1.0)
    return (channels - black) / extent


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


def heat_map(uncertainty):
    """Colour uncertainties (H, W) on the fixed scale from 0, black, to `MOST_UNCERTAIN`: uint8 (H, W, 3)."""
    colours = matplotlib.colormaps[COLOUR_MAP](np.clip(uncertainty / MOST_UNCERTAIN, 0, 1))  # (H, W, 4), RGBA
    return np.round(255 * colours[..., :3]).astype(np.uint8)


def largest_slice(masks):
    """Return the axial slice with the most pixels in any mask of (K, X, Y, Z), or None if all are empty."""
    area = masks.any(axis=0).sum(axis=(0, 1))  # (Z,)
    return int(area.argmax()) if area.any() else None

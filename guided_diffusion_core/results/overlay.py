"""The overlay picture of a case: the outlines of its masks on its image, to look at, not to measure on."""

import numpy as np
from scipy.ndimage import binary_erosion

from guided_diffusion_core.data.formats.transforms import resize_linear

# RGB of the outlines, by label; from the seventh label on they begin again.
COLOURS = ((255, 64, 64), (64, 224, 64), (96, 160, 255), (255, 208, 0), (255, 96, 255), (0, 224, 224))
SHOWN = (1.0, 99.0)  # percentiles of a grey picture between which black and white lie
PIXELS_PER_WIDTH = 400  # a picture of that many pixels gets an outline of one pixel, larger ones a wider one


def displayed(image):
    """A network input (C, S, S) as a picture, uint8 (S, S, 3): three channels are RGB in [0, 1], of
    others the last is shown in grey."""
    image = np.asarray(image, np.float32)
    if len(image) == 3:
        shown = np.moveaxis(image, 0, -1)  # (3, S, S) -> (S, S, 3)
    else:
        black, white = np.percentile(image[-1], SHOWN)
        shown = np.repeat((image[-1, ..., None] - black) / (white - black or 1.0), 3, axis=-1)
    return (np.clip(shown, 0.0, 1.0) * 255).round().astype(np.uint8)


def draw_overlay(picture, masks):
    """The outlines of masks on a picture: uint8 (H, W, 3).

    picture: uint8 (S, S, 3), see `displayed`; it is resized to the masks.
    masks:   (K, H, W) bool; outlines lie inside their mask, the later ones on top of the earlier ones.
    """
    resized = resize_linear(np.moveaxis(picture, -1, 0), masks.shape[1:])  # (3, H, W)
    overlay = np.moveaxis(resized, 0, -1).round().astype(np.uint8)  # (H, W, 3)
    width = max(1, round(max(masks.shape[1:]) / PIXELS_PER_WIDTH))
    for k, mask in enumerate(masks):
        overlay[mask & ~binary_erosion(mask, iterations=width)] = COLOURS[k % len(COLOURS)]
    return overlay


def shown_slice(masks):
    """Number of the axial slice that has most pixels in any mask of (K, X, Y, Z); None if all are empty."""
    area = masks.any(axis=0).sum(axis=(0, 1))  # (Z,)
    return int(area.argmax()) if area.any() else None

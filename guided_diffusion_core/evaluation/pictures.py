"""Pictures of single cases: the image, the truth's outline, the prediction's, their errors, the uncertainty."""

import base64
import io

import matplotlib
import numpy as np
from PIL import Image
from skimage.segmentation import find_boundaries

from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.data.formats.transforms import resize_linear, resize_nearest
from guided_diffusion_core.errors import UserError

LONGER_SIDE = 256  # pixels of a panel
GAP = 6
COLOURS = np.array([[0, 158, 115], [230, 159, 0], [204, 121, 167], [86, 180, 233], [240, 228, 66]], np.uint8)
MISSED = np.array([0, 114, 178], np.uint8)
INVENTED = np.array([213, 94, 0], np.uint8)


class ImageSource:
    """The images of a configuration's data by case and slice, grey where there are none.

    data_config: `DataConfig`. found: whether it holds images at all.
    """

    def __init__(self, data_config):
        try:
            self._dataset = open_dataset(data_config, LONGER_SIDE, "Test", need_masks=False)
            self._cases = {case.name: case for case in self._dataset.cases()}
        except UserError:  # the truth may lie alone in its folder
            self._cases = {}
        self.found = bool(self._cases)

    def picture(self, name, slice_index, shape):
        """An image as uint8 (*shape, 3), shape = (height, width).

        slice_index: axial slice of a volume, from 0, or None for a 2D image.
        """
        case = self._cases.get(name)
        if case is None or (slice_index is not None and slice_index not in case.slices):
            return np.full((*shape, 3), 128, np.uint8)
        place = 0 if slice_index is None else case.slices.index(slice_index)
        try:
            image = self._dataset[case.indices[place]].image  # (C, S, S)
        except UserError:  # scores do not depend on it
            return np.full((*shape, 3), 128, np.uint8)
        image = resize_linear(image if len(image) == 3 else image[-1:], shape)
        low, high = (0, 1) if len(image) == 3 else np.percentile(image, (0.5, 99.5))
        grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
        return np.broadcast_to(np.round(255 * grey).astype(np.uint8).transpose(1, 2, 0), (*shape, 3)).copy()


def case_picture(images, truth, scored):
    """Panels of a case beside each other: image, truth, prediction, errors, uncertainty (where its files are).

    images: `ImageSource`. truth: `Truth`. scored: `predictions.Scored`; of a volume the slice with the most
    wrong pixels is shown, turned as radiologists look at it.
    Returns (PNG as a data URI, number of the slice or None, largest uncertainty or None: the white end of
    its panel).
    """
    place = None
    index = ()
    if truth.slices is not None:
        place = int(np.argmax((scored.truth != scored.prediction).sum(axis=(0, 1, 2))))
        index = (..., place)
    slice_index = None if place is None else truth.slices[place]
    shape = panel_shape(scored.truth.shape[1:3])
    image = images.picture(truth.name, slice_index, shape)
    expected, prediction = (resize_nearest(masks[index], shape) for masks in (scored.truth, scored.prediction))
    errors = image.copy()
    errors[(expected & ~prediction).any(0)] = MISSED
    errors[(prediction & ~expected).any(0)] = INVENTED
    panels = [image, outlined(image, expected), outlined(image, prediction), errors]
    largest = None
    if scored.uncertainty is not None:
        spread = scored.uncertainty[index].max(axis=0)
        largest = float(spread.max())
        panels.append(_heat(resize_linear(spread, shape), largest))
    return png_uri(beside(panels, turned=place is not None)), slice_index, largest


def panel_shape(shape):
    """(height, width) of a panel for pictures of a shape, with `LONGER_SIDE`."""
    scale = LONGER_SIDE / max(shape)
    return tuple(max(1, round(side * scale)) for side in shape)


def outlined(image, masks):
    """A copy of an image (H, W, 3) uint8 with the outlines of masks (K, H, W), a colour for each."""
    picture = image.copy()
    for place, mask in enumerate(masks):
        picture[find_boundaries(mask, mode="inner") | find_boundaries(mask, mode="outer")] = COLOURS[
            place % len(COLOURS)
        ]
    return picture


def beside(panels, turned=False):
    """Panels (H, W, 3) uint8 of one shape in a row on white; turned: each by 90 degrees first."""
    panels = [np.rot90(panel) if turned else panel for panel in panels]
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def png_uri(picture):
    """A picture, uint8 (H, W, 3) or the bytes of a PNG file, as a data URI."""
    if not isinstance(picture, bytes):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        picture = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _heat(uncertainty, largest):
    """Values (H, W) from 0 to the largest as colours, uint8 (H, W, 3)."""
    colours = matplotlib.colormaps["magma"](np.clip(uncertainty / (largest or 1), 0, 1))
    return np.round(255 * colours[..., :3]).astype(np.uint8)

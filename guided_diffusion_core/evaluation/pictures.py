"""Pictures of single cases: the image, the outlines of truth and prediction, their errors, the uncertainty."""

import io

import numpy as np
from PIL import Image

from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.data.formats.transforms import resize_linear, resize_nearest
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.html_report import data_uri
from guided_diffusion_core.results.display import as_picture, draw_outlines, heat_map

LONGER_SIDE = 256  # of a panel, in pixels
OUTLINE_WIDTH = 2  # pixels; one pixel is too thin to see in a panel of this size
GAP = 6  # pixels between panels
GREY = 128  # shown where there is no image
MISSED = np.array([0, 114, 178], np.uint8)  # false negatives
INVENTED = np.array([213, 94, 0], np.uint8)  # false positives


class ImageSource:
    """The images of a dataset by case and slice; a grey picture stands in for a missing image.

    data_config: `DataConfig`. found: True if there is any image.
    """

    def __init__(self, data_config):
        try:
            self._dataset = open_dataset(data_config, LONGER_SIDE, "Test", need_masks=False)
            self._cases = {case.name: case for case in self._dataset.cases()}
        except UserError:  # a folder may hold only the ground truth
            self._cases = {}
        self.found = bool(self._cases)

    def picture(self, name, slice_index, shape):
        """Return an image as uint8 (height, width, 3).

        slice_index: axial slice of a volume, from 0, or None for a 2D image. shape: (height, width).
        """
        grey = np.full((*shape, 3), GREY, np.uint8)
        case = self._cases.get(name)
        if case is None:
            return grey
        if slice_index is None:
            place = 0
        elif slice_index in case.slices:
            place = case.slices.index(slice_index)
        else:
            return grey
        try:
            image = self._dataset[case.indices[place]].image  # (C, S, S)
        except UserError:  # a broken image does not matter here: the scores do not depend on it
            return grey
        return as_picture(resize_linear(image, shape))


def case_picture(images, truth, scored):
    """Draw a case as panels: image, truth, prediction, errors, and the uncertainty if its files exist.

    images: `ImageSource`. truth: `Truth`. scored: `predictions.Scored`. A volume is shown by the slice with
    the most wrong pixels, rotated as radiologists view it.
    Returns (PNG as a data URI, number of the slice or None, largest uncertainty of the shown pixels or None).
    """
    is_volume = truth.slices is not None
    if is_volume:
        wrong = (scored.truth != scored.prediction).sum(axis=(0, 1, 2))  # (K, X, Y, Z) -> (Z,)
        place = int(np.argmax(wrong))
        slice_index = truth.slices[place]
        plane = (..., place)
    else:
        slice_index = None
        plane = ()
    shape = panel_shape(scored.truth.shape[1:3])
    image = images.picture(truth.name, slice_index, shape)
    expected = resize_nearest(scored.truth[plane], shape)  # (K, height, width)
    prediction = resize_nearest(scored.prediction[plane], shape)
    errors = image.copy()
    errors[(expected & ~prediction).any(axis=0)] = MISSED
    errors[(prediction & ~expected).any(axis=0)] = INVENTED
    outlined = [draw_outlines(image, masks, OUTLINE_WIDTH) for masks in (expected, prediction)]
    panels = [image, *outlined, errors]
    largest = None
    if scored.uncertainty is not None:
        uncertainty = scored.uncertainty[plane].max(axis=0)  # the most uncertain label of each pixel
        largest = float(uncertainty.max())
        panels.append(heat_map(resize_linear(uncertainty, shape)))
    return png_uri(join_panels(panels, rotate=is_volume)), slice_index, largest


def panel_shape(shape):
    """Return the (height, width) of the panel for a picture of (height, width): its longer side is `LONGER_SIDE`."""
    scale = LONGER_SIDE / max(shape)
    return tuple(max(1, round(side * scale)) for side in shape)


def join_panels(panels, rotate=False):
    """Join panels, uint8 (H, W, 3) of one shape, into a row with white gaps.

    rotate: rotate each panel by 90 degrees first.
    """
    if rotate:
        panels = [np.rot90(panel) for panel in panels]
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    row = [panels[0]]
    for panel in panels[1:]:
        row += [gap, panel]
    return np.concatenate(row, axis=1)


def png_uri(picture):
    """Return a picture, uint8 (H, W, 3), as the data URI of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return data_uri(buffer.getvalue())

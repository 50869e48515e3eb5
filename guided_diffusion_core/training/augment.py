"""Augmentation: random mirroring, rotation, scaling and intensities of the training examples.

All of it is off by default. Each number is drawn from the noise tape at the number of the example in the run. It does
not depend on the batch size, the loader's processes, the framework, or on interruptions of the run. numpy and scipy
compute the arrays, which are the same for both backends.
"""

import numpy as np
from scipy.ndimage import affine_transform

from guided_diffusion_core.data.formats.transforms import RGB_RULE, ZSCORE_RULE
from guided_diffusion_core.noise import TRAIN_AUGMENT

# The draws of an example in their order on the tape. A new one goes to the end, which leaves the others as they are.
DRAWS = ("vertical", "horizontal", "rotation", "scale", "brightness", "contrast", "gamma")
# Orders of the interpolating spline.
LINEAR = 1
NEAREST = 0


class Augmentation:
    """A function of (image, mask, place) that changes both in the same way, by the settings of a run.

    settings:      `TrainingConfig`, with its fields `augment_*`.
    normalisation: the rule of the dataset, which gives the range of an image's values.
    tape:          `NoiseTape`.
    """

    def __init__(self, settings, normalisation, tape):
        self.settings = settings
        self.normalisation = normalisation
        self.tape = tape

    def __call__(self, image, mask, place):
        """Augment one example.

        image: (C, S, S) float32.
        mask:  (K, S, S) float32 of 0 and 1.
        place: number of the example in the run, from 0; the key of its draws.
        Returns new arrays of the same shapes and types.
        """
        settings = self.settings
        # All numbers are drawn in any case, so that a setting does not change the draws of the others.
        uniform = dict(zip(DRAWS, self.tape.uniform(TRAIN_AUGMENT, (len(DRAWS),), step=place)))
        drawn = {name: 2 * value - 1 for name, value in uniform.items()}  # U[-1, 1)
        axes = []
        for axis, name in ((-2, "vertical"), (-1, "horizontal")):
            if settings.augment_flip in (name, "both") and uniform[name] < 0.5:
                axes.append(axis)
        image = np.flip(image, axes)
        mask = np.flip(mask, axes)
        # before the warp, whose zeros outside the image would count in mean and extremes
        image = change_intensity(
            image,
            self.normalisation,
            settings.augment_brightness * drawn["brightness"],
            1 + settings.augment_contrast * drawn["contrast"],
            1 + settings.augment_gamma * drawn["gamma"],
        )
        # the same transformation for both; only the mask has to keep its values 0 and 1
        if settings.augment_rotation or settings.augment_scale:
            degrees = settings.augment_rotation * drawn["rotation"]
            scale = 1 + settings.augment_scale * drawn["scale"]
            image = warp(image, degrees, scale, LINEAR)
            mask = warp(mask, degrees, scale, NEAREST)
        return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(mask, np.float32)


def create_augmentation(settings, normalisation, tape):
    """Return the `Augmentation` of a run, with its arguments, or None if the settings change nothing."""
    amounts = (
        settings.augment_rotation,
        settings.augment_scale,
        settings.augment_brightness,
        settings.augment_contrast,
        settings.augment_gamma,
    )
    if settings.augment_flip == "none" and not any(amounts):
        return None
    return Augmentation(settings, normalisation, tape)


def warp(pictures, degrees, scale, order):
    """Rotate pictures about their centre and scale them, in one interpolation. Pixels from outside are 0.

    pictures: (N, S, S).
    degrees:  angle, counter-clockwise with the first row of the array at the top.
    scale:    factor; above 1 enlarges.
    order:    `LINEAR`, or `NEAREST`, which keeps 0 and 1.
    Returns float32 (N, S, S).
    """
    angle = np.deg2rad(degrees)
    # The matrix maps a pixel of the result to its source, both relative to the centre.
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    centre = (np.array(pictures.shape[1:]) - 1) / 2
    return np.stack(
        [
            # "grid-constant": the outermost half pixel is part of the picture, as in resizing
            affine_transform(
                picture,
                matrix,
                centre - matrix @ centre,
                output=np.float32,
                order=order,
                mode="grid-constant",
                prefilter=False,
            )
            for picture in pictures
        ]
    )


def change_intensity(image, normalisation, shift, contrast, gamma):
    """Change the intensities of an image (C, S, S), all channels by the same numbers; returns float64.

    Each channel is changed in this order:

    gamma:    v -> low + (high - low) ((v - low) / (high - low))^gamma, between its extremes.
    contrast: v -> mean + contrast (v - mean).
    shift:    v -> v + shift, in units of the network input: for `RGB_RULE` a share of the range,
              for `ZSCORE_RULE` standard deviations.

    The extremes are 0 and 1 by `RGB_RULE`, and the result is clipped to them. The background, which is 0 by
    `ZSCORE_RULE`, stays 0 and does not count in the mean and the extremes.
    """
    image = np.asarray(image, np.float64)
    if (shift, contrast, gamma) == (0, 1, 1):
        return image
    changed = image.copy()
    for values, target in zip(image, changed):
        inside = values != 0 if normalisation == ZSCORE_RULE else np.ones(values.shape, bool)
        if inside.any():
            target[inside] = _changed(values[inside], normalisation == RGB_RULE, shift, contrast, gamma)
    return changed


def _changed(values, bounded, shift, contrast, gamma):
    """Change the values of one channel; bounded: they lie in [0, 1]."""
    low, high = (0.0, 1.0) if bounded else (values.min(), values.max())
    if gamma != 1 and high > low:
        values = low + (high - low) * ((values - low) / (high - low)) ** gamma
    mean = values.mean()
    values = mean + contrast * (values - mean) + shift
    return np.clip(values, low, high) if bounded else values

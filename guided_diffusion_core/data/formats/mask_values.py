"""The rule for the numbers in a mask file of any format: they are whole, or cut at a threshold that the user states."""

import numpy as np

from guided_diffusion_core.errors import found_expected

WHOLE = 1e-3  # a stored value this near to a whole number is that number: a slope in the header can cost some digits
SHOWN = 6  # values that an error lists
NEAREST = "Resample masks to the nearest neighbour"


def whole_values(values, where, advice=f"{NEAREST}."):
    """Return the whole numbers that a mask stores, as an array of the same shape.

    where:  the file, for the error.
    advice: how to mend a file with fractions.
    Raises `UserError` for fractions, as linear resampling and probabilities leave them, and for NaN or infinity.
    """
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return values
    _require_finite(values, where)
    whole = np.rint(values)
    fractions = values[np.abs(values - whole) > WHOLE]
    if fractions.size:
        distinct = np.unique(fractions)
        shown = ", ".join(f"{value:.8g}" for value in distinct[:: max(1, len(distinct) // SHOWN)][:SHOWN])
        raise found_expected(
            where,
            f"label values {shown}, which are not whole ({fractions.size} of {values.size} values)",
            "whole numbers in a mask",
            advice,
        )
    return whole


def foreground(values, where, threshold=0.0):
    """Return the foreground of a binary mask, bool of the same shape: above 0, or from a threshold on.

    where:     the file, for the error.
    threshold: `DataConfig.mask_threshold`; 0 requires whole numbers.
    Raises `UserError` like `whole_values`.
    """
    values = np.asarray(values)
    if threshold:
        _require_finite(values, where)
        return values >= threshold
    if values.dtype.kind != "f":
        return values > 0
    half = float(np.max(values, initial=0, where=np.isfinite(values))) / 2
    advice = f"{NEAREST}, or give --mask_threshold {half:.4g} to count all values from there on as foreground."
    return whole_values(values, where, advice) > 0


def _require_finite(values, where):
    if values.dtype.kind != "f":
        return
    broken = values[~np.isfinite(values)]
    if broken.size:
        shown = ", ".join(f"{value:g}" for value in np.unique(broken)).replace("nan", "NaN")
        raise found_expected(
            where,
            f"label values {shown} ({broken.size} of {values.size} values)",
            "finite numbers in a mask",
            "Set them to the value of the background.",
        )

"""Whether the predicted probability and its uncertainty can be believed."""

import numpy as np

from guided_diffusion_core.evaluation.statistics import defined, mean

BINS = 10
SHARES = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8, 0.6)
DEFINITIONS = {
    "ECE": f"expected calibration error (Naeini et al. 2015) of the foreground probability: over {BINS} bins of equal "
    "width, the mean of |mean probability - share of foreground| weighted by the bin's pixels, all pixels of "
    "all cases pooled; a probability on the border of two bins belongs to the upper",
    "retained": "Dice over the given share of a case's pixels, those of lowest uncertainty, mean over the cases in "
    "which it is defined; of pixels that tie at the limit each counts by the share of them that fits",
}


class Calibration:
    """Sums over the cases of one label; `add` each case, then `summary`."""

    def __init__(self):
        self.pixels, self.foreground, self.probability = np.zeros((3, BINS))
        self.curves = []

    def add(self, scored, label):
        """Take up one case.

        scored: `predictions.Scored`; without probability or uncertainty, that part is left out.
        label: place of the label.
        """
        truth = scored.truth[label].ravel()
        if scored.probability is not None:
            probability = np.clip(scored.probability[label].ravel().astype(np.float64), 0, 1)
            place = np.minimum((probability * BINS).astype(np.intp), BINS - 1)
            self.pixels += np.bincount(place, minlength=BINS)
            self.foreground += np.bincount(place[truth], minlength=BINS)
            self.probability += np.bincount(place, probability, minlength=BINS)
        if scored.uncertainty is not None:
            self.curves.append(
                retained_dice(scored.prediction[label].ravel(), truth, scored.uncertainty[label].ravel())
            )

    def summary(self):
        """JSON values: ECE, the bins, and the mean Dice by retained share; None where files lacked."""
        filled = np.maximum(self.pixels, 1)
        gaps = np.abs(self.probability - self.foreground)  # of the means, times the bin's pixels
        return {
            "ECE": float(gaps.sum() / self.pixels.sum()) if self.pixels.any() else None,
            "bins": [
                {
                    "from": place / BINS,
                    "to": (place + 1) / BINS,
                    "pixels": int(self.pixels[place]),
                    "mean_probability": float(self.probability[place] / filled[place]),
                    "share_of_foreground": float(self.foreground[place] / filled[place]),
                }
                for place in range(BINS)
                if self.pixels[place]
            ],
            "retained": [
                {"share": share, "Dice": mean(values), "cases": len(defined(values))}
                for share, values in zip(SHARES, zip(*self.curves))
            ],
        }


def retained_dice(prediction, truth, uncertainty):
    """Dice of the most certain pixels, for each of `SHARES` a number or None where no foreground is left.

    prediction, truth: bool (n,). uncertainty: (n,). Of tied pixels each counts by the share that fits, so
    that the order of the pixels does not matter.
    """
    ordered = np.sort(uncertainty)
    counted = prediction | truth  # true negatives do not enter the Dice
    spread = uncertainty[counted]
    hit = (prediction & truth)[counted]
    curve = []
    for share in SHARES:
        kept = max(1, round(share * len(ordered)))
        limit = ordered[kept - 1]
        below = np.searchsorted(ordered, limit, "left")
        through = np.searchsorted(ordered, limit, "right")
        weight = (spread < limit) + (spread == limit) * ((kept - below) / (through - below))
        double_tp = 2 * weight[hit].sum()
        rest = weight[~hit].sum()
        curve.append(float(double_tp / (double_tp + rest)) if double_tp + rest else None)
    return curve

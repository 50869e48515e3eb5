"""Calibration: how far the predicted probability and its uncertainty can be trusted."""

import numpy as np

from guided_diffusion_core.evaluation.statistics import defined, mean

BINS = 10  # of the probability, of equal width
SHARES = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8, 0.6)  # of the pixels that `retained_dice` keeps
DEFINITIONS = {
    "ECE": f"expected calibration error (Naeini et al. 2015) of the foreground probability: over {BINS} bins of equal "
    "width, the mean of |mean probability - share of foreground| weighted by the bin's pixels, all pixels of "
    "all cases pooled; a probability on the border of two bins belongs to the upper",
    "retained": "Dice over the given share of a case's pixels, those of lowest uncertainty, mean over the cases in "
    "which it is defined; of pixels that tie at the limit each counts by the share of them that fits",
}


class Calibration:
    """Sums over the cases of one label: call `add` with each case, then `summary`."""

    def __init__(self):
        # by bin of the probability: number of pixels, number of foreground pixels, sum of the probability
        self.pixels = np.zeros(BINS)
        self.foreground = np.zeros(BINS)
        self.probability = np.zeros(BINS)
        self.curves = []  # one list per case, by `SHARES`

    def add(self, scored, label):
        """Add one case.

        scored: `predictions.Scored`. A missing probability or uncertainty leaves that part out.
        label:  index of the label.
        """
        truth = scored.truth[label].ravel()
        if scored.probability is not None:
            probability = np.clip(scored.probability[label].ravel().astype(np.float64), 0, 1)
            bins = np.minimum((probability * BINS).astype(np.intp), BINS - 1)  # the value 1 goes into the last bin
            self.pixels += np.bincount(bins, minlength=BINS)
            self.foreground += np.bincount(bins[truth], minlength=BINS)
            self.probability += np.bincount(bins, probability, minlength=BINS)
        if scored.uncertainty is not None:
            prediction = scored.prediction[label].ravel()
            uncertainty = scored.uncertainty[label].ravel()
            self.curves.append(retained_dice(prediction, truth, uncertainty))

    def summary(self):
        """Return JSON values: ECE, the bins, and the mean Dice by retained share; None or empty without files."""
        # |mean probability - share of foreground| of each bin, times its number of pixels
        gaps = np.abs(self.probability - self.foreground)
        retained = []
        for share, values in zip(SHARES, zip(*self.curves)):  # values: one per case
            retained.append({"share": share, "Dice": mean(values), "cases": len(defined(values))})
        return {
            "ECE": float(gaps.sum() / self.pixels.sum()) if self.pixels.any() else None,
            "bins": [self._bin(k) for k in range(BINS) if self.pixels[k]],
            "retained": retained,
        }

    def _bin(self, k):
        return {
            "from": k / BINS,
            "to": (k + 1) / BINS,
            "pixels": int(self.pixels[k]),
            "mean_probability": float(self.probability[k] / self.pixels[k]),
            "share_of_foreground": float(self.foreground[k] / self.pixels[k]),
        }


def retained_dice(prediction, truth, uncertainty):
    """Compute the Dice of the most certain pixels for each of `SHARES`; None where no foreground is left.

    prediction, truth: bool (n,). uncertainty: (n,). Pixels of equal uncertainty at the limit each count by the
    share of them that fits. So the order of the pixels does not matter.
    """
    ordered = np.sort(uncertainty)
    counted = prediction | truth  # true negatives do not enter the Dice
    spread = uncertainty[counted]
    hit = (prediction & truth)[counted]  # true positives; the others are false positives or false negatives
    curve = []
    for share in SHARES:
        kept = max(1, round(share * len(ordered)))
        limit = ordered[kept - 1]
        below = np.searchsorted(ordered, limit, "left")  # pixels below the limit
        through = np.searchsorted(ordered, limit, "right")  # pixels up to and including the limit
        tied_weight = (kept - below) / (through - below)
        weight = (spread < limit) + (spread == limit) * tied_weight
        # Dice = 2 TP / (2 TP + FP + FN) with weighted pixels
        double_tp = 2 * weight[hit].sum()
        errors = weight[~hit].sum()
        total = double_tp + errors
        curve.append(float(double_tp / total) if total else None)
    return curve

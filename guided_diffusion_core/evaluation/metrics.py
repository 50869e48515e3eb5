"""Overlap scores of binary masks."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Counts:
    """Numbers of pixels (or voxels): true positives, false positives, false negatives, true negatives.

    The scores are in [0, 1]. The overlap scores are None if both masks are empty, and 0 if only one is.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def both_empty(self):
        """True if neither mask has foreground; then no overlap is defined."""
        return self.tp + self.fp + self.fn == 0

    @property
    def dice(self):
        """Dice coefficient 2 TP / (2 TP + FP + FN) (Dice 1945)."""
        return None if self.both_empty else 2 * self.tp / (2 * self.tp + self.fp + self.fn)

    @property
    def iou(self):
        """Intersection over union TP / (TP + FP + FN) (Jaccard 1901)."""
        return None if self.both_empty else self.tp / (self.tp + self.fp + self.fn)

    @property
    def precision(self):
        """Precision TP / (TP + FP)."""
        return None if self.both_empty else self.tp / max(1, self.tp + self.fp)

    @property
    def recall(self):
        """Recall TP / (TP + FN), also called sensitivity."""
        return None if self.both_empty else self.tp / max(1, self.tp + self.fn)

    @property
    def specificity(self):
        """Specificity TN / (TN + FP); None if the truth has no background."""
        return self.tn / (self.tn + self.fp) if self.tn + self.fp else None


def count(prediction, truth):
    """Return the `Counts` of two boolean arrays of one shape. Raises ValueError if the shapes differ."""
    prediction, truth = _same_shape(prediction, truth)
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return Counts(tp, fp, fn, truth.size - tp - fp - fn)


def pixel_agreement(first, second):
    """Return the share of pixels, in [0, 1], on which two boolean masks of one shape agree."""
    first, second = _same_shape(first, second)
    return float(np.mean(first == second))


def _same_shape(first, second):
    first = np.asarray(first, bool)
    second = np.asarray(second, bool)
    if first.shape != second.shape:
        raise ValueError(f"masks of shapes {first.shape} and {second.shape}")
    return first, second

"""Mean, median and bootstrap interval of scores over cases."""

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0
INTERVAL_RULE = (
    f"{100 * CONFIDENCE:g}% percentile bootstrap interval of the mean over the cases (Efron 1979; "
    f"scipy.stats.bootstrap, {RESAMPLES} resamples of the cases, seed {SEED}); null below two cases"
)
_BATCH_VALUES = 5_000_000  # drawn at a time, to limit the memory


def mean(values):
    """Return the mean of the values that are not None; None if there are none."""
    values = defined(values)
    return float(np.mean(values)) if values else None


def median(values):
    """Return the median of the values that are not None; None if there are none."""
    values = defined(values)
    return float(np.median(values)) if values else None


def mean_interval(values):
    """Return the interval [low, high] of the mean by `INTERVAL_RULE`; values that are None are left out.

    Returns None if fewer than two values remain.
    """
    values = defined(values)
    if len(values) < 2:
        return None
    from scipy import stats  # here, because the import takes a second

    found = stats.bootstrap(
        (np.asarray(values, np.float64),),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        batch=max(1, _BATCH_VALUES // len(values)),
        rng=np.random.default_rng(SEED),
    )
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def defined(values):
    """Return the values that are not None, as a list."""
    return [value for value in values if value is not None]

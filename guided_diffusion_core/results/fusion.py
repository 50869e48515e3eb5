"""Fusion of an ensemble of sampled masks into a probability and its uncertainty: the rules of `config.FUSIONS`."""

import numpy as np

from guided_diffusion_core.errors import UserError

# The meaning of a pixel's two numbers under each rule. The report of a sampling run quotes it.
_SPREAD = "standard deviation (divisor M) of the M samples, clipped to [0, 1]"
DEFINITIONS = {
    "mean": {"probability": "mean of the samples, clipped to [0, 1]", "uncertainty": _SPREAD},
    "majority": {
        "probability": "share v of the samples that vote for the pixel, a value of at least 0.5; at the threshold 0.5 "
        "a tie is foreground",
        "uncertainty": "standard deviation of the votes, sqrt(v (1 - v))",
    },
    "staple": {
        "probability": "w, probability of foreground given the votes (values of at least 0.5), by STAPLE (Warfield, "
        "Zou & Wells 2004) for each picture and label; where all samples agree, their mask",
        "uncertainty": "standard deviation of a truth that is 1 with probability w, sqrt(w (1 - w))",
    },
    "upstream": {
        "probability": "mean of sample times mean of the samples, which is the square of their mean, clipped to "
        "[0, 1]: the original calls it STAPLE",
        "uncertainty": _SPREAD,
    },
}

VOTE = 0.5  # a member votes for a pixel if its value is at least this
STAPLE_ITERATIONS = 1000  # at most, per picture; masks need some tens, pure noise would need far more


def fuse(members, rule="mean"):
    """Fuse an ensemble into a probability and its uncertainty.

    members: (M, ...) sampled masks; for the rule `staple` the last two axes are the picture.
    rule:    one of `config.FUSIONS`.
    Returns (probability in [0, 1], uncertainty in [0, 0.5]), each float32 (...); see `DEFINITIONS`.
    Raises `UserError` for `staple` without SimpleITK, KeyError for an unknown rule.
    """
    return _RULES[rule](members)


def fuse_mean(members):
    """Compute the mean and the standard deviation of an ensemble.

    members: (M, ...) sampled masks. Values outside [0, 1] are clipped first, because a sample is a
             noisy estimate of a mask of 0 and 1.
    Returns (probability, uncertainty), each float32 (...): the mean in [0, 1] and the population
    standard deviation (divisor M) in [0, 0.5].
    """
    members = np.clip(np.asarray(members, np.float64), 0.0, 1.0)
    mean = members.mean(axis=0)
    deviation = members.std(axis=0)
    return mean.astype(np.float32), deviation.astype(np.float32)


def fuse_majority(members):
    """Compute the share of the members that vote for each pixel, and the standard deviation of the votes."""
    return _with_deviation(_votes(members).mean(axis=0))


def fuse_staple(members):
    """Estimate each picture (the last two axes) by STAPLE from the members' votes, with SimpleITK.

    The prior is the share of foreground among all votes on the picture. Where all members agree there
    is nothing to estimate, and without foreground or background the estimate would be 0 / 0. The
    probability is then their mask.
    """
    votes = _votes(members)  # (M, ..., H, W)
    pictures = votes.reshape(len(votes), -1, *votes.shape[-2:])  # (M, P, H, W)
    fused = [_staple(pictures[:, k]) for k in range(pictures.shape[1])]
    return _with_deviation(np.reshape(fused, votes.shape[1:]))


def fuse_upstream(members):
    """Apply the original's rule (its utils.py): each member times the mean of all, averaged.

    Values outside [0, 1] are clipped at the end, as the original does when it saves its picture.
    """
    members = np.asarray(members, np.float64)
    products = members * members.mean(axis=0)
    probability = np.clip(products.mean(axis=0), 0.0, 1.0)
    _, uncertainty = fuse_mean(members)
    return probability.astype(np.float32), uncertainty


_RULES = {"mean": fuse_mean, "majority": fuse_majority, "staple": fuse_staple, "upstream": fuse_upstream}


def binarize(probability, threshold):
    """Return the mask of the pixels whose probability is at least the threshold: bool."""
    # both as float32, so that a stored probability gives the mask that was written with it
    return np.asarray(probability, np.float32) >= np.float32(threshold)


def _votes(members):
    return np.asarray(members) >= VOTE


def _with_deviation(probability):
    """Return a probability p and the standard deviation sqrt(p (1 - p)) of a Bernoulli variable, both float32."""
    deviation = np.sqrt(probability * (1.0 - probability))
    return probability.astype(np.float32), deviation.astype(np.float32)


def _staple(votes):
    """Estimate one picture by STAPLE: bool (M, H, W) -> float64 (H, W)."""
    if (votes == votes[0]).all():
        return votes[0].astype(np.float64)
    try:
        import SimpleITK  # here, because the import takes a second and only this rule needs it
    except ModuleNotFoundError as error:
        raise UserError("--fusion staple: SimpleITK is not installed. Run: pip install SimpleITK") from error
    staple = SimpleITK.STAPLEImageFilter()
    staple.SetForegroundValue(1)
    staple.SetMaximumIterations(STAPLE_ITERATIONS)
    images = [SimpleITK.GetImageFromArray(vote.astype(np.uint8)) for vote in votes]
    return SimpleITK.GetArrayFromImage(staple.Execute(images))

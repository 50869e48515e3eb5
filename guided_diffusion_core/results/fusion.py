"""Fusion of an ensemble of sampled masks into one probability and its uncertainty: the rules of `config.FUSIONS`."""

import numpy as np

from guided_diffusion_core.errors import UserError

# What the two numbers of a pixel mean by each rule; a sampling's report says it too.
_SPREAD = "standard deviation (divisor M) of the M samples, clipped to [0, 1]"
DEFINITIONS = {
    "mean": {"probability": "mean of the samples, clipped to [0, 1]", "uncertainty": _SPREAD},
    "majority": {
        "probability": "share v of the samples that vote for the pixel, a value of at least 0.5; at the threshold 0.5 "
        "a tie is foreground",
        "uncertainty": "standard deviation of the votes, sqrt(v (1 - v))",
    },
    "staple": {
        "probability": "w, probability of foreground given the votes (values of at least 0.5), by STAPLE (Warfield, Zou "
        "& Wells 2004) of each picture and label; where all samples agree, their mask",
        "uncertainty": "standard deviation of a truth that is 1 with probability w, sqrt(w (1 - w))",
    },
    "upstream": {
        "probability": "mean of sample times mean of the samples, which is the square of their mean, clipped to [0, 1]: "
        "what the original calls STAPLE",
        "uncertainty": _SPREAD,
    },
}

VOTE = 0.5  # from here on a member's value is a vote for the pixel
STAPLE_ITERATIONS = 1000  # of a slice; masks need some tens, noise would take very many


def fuse(members, rule="mean"):
    """Probability and uncertainty of an ensemble.

    members: (M, ...) sampled masks; for the rule `staple` the last two axes are the picture.
    rule:    one of `config.FUSIONS`.
    Returns (probability in [0, 1], uncertainty in [0, 0.5]), each float32 (...), see `DEFINITIONS`.
    Raises `UserError` for `staple` without SimpleITK, KeyError for an unknown rule.
    """
    return _RULES[rule](members)


def fuse_mean(members):
    """Mean and standard deviation of an ensemble.

    members: (M, ...) sampled masks; values outside [0, 1] are clipped first, because a sample is a
             noisy estimate of a mask of 0 and 1.
    Returns (probability, uncertainty), each float32 (...): the mean in [0, 1], and the population
    standard deviation (divisor M) in [0, 0.5].
    """
    members = np.clip(np.asarray(members, np.float64), 0.0, 1.0)
    return members.mean(axis=0).astype(np.float32), members.std(axis=0).astype(np.float32)


def fuse_majority(members):
    """Share of the members that vote for each pixel, and the standard deviation of the votes."""
    return _with_spread(_votes(members).mean(axis=0))


def fuse_staple(members):
    """STAPLE of the members' votes, each picture (the last two axes) by itself, by SimpleITK.

    The prior is the share of foreground among all votes of the picture. Where all members agree there
    is nothing to estimate (without foreground, or without background, the estimate is 0 / 0): the
    probability is their mask.
    """
    votes = _votes(members)  # (M, ..., H, W)
    pictures = votes.reshape(len(votes), -1, *votes.shape[-2:])  # (M, P, H, W)
    fused = [_staple(pictures[:, k]) for k in range(pictures.shape[1])]
    return _with_spread(np.reshape(fused, votes.shape[1:]))


def fuse_upstream(members):
    """The original's rule, utils.py: each member times the mean of all, averaged; values outside [0, 1]
    are clipped at the end, as it is done when its picture is saved."""
    members = np.asarray(members, np.float64)
    probability = np.clip((members * members.mean(axis=0)).mean(axis=0), 0.0, 1.0)
    return probability.astype(np.float32), fuse_mean(members)[1]


_RULES = {"mean": fuse_mean, "majority": fuse_majority, "staple": fuse_staple, "upstream": fuse_upstream}


def binarize(probability, threshold):
    """Mask of the pixels whose probability reaches the threshold; bool."""
    return np.asarray(probability, np.float32) >= np.float32(threshold)


def _votes(members):
    return np.asarray(members) >= VOTE


def _with_spread(probability):
    """A probability and the standard deviation of what is 1 with that probability, float32."""
    spread = np.sqrt(probability * (1.0 - probability))
    return probability.astype(np.float32), spread.astype(np.float32)


def _staple(votes):
    """STAPLE of (M, H, W) bool: (H, W) float64."""
    if (votes == votes[0]).all():
        return votes[0].astype(np.float64)
    try:
        import SimpleITK  # here, since it takes a second and only this rule needs it
    except ModuleNotFoundError as error:
        raise UserError("--fusion staple: SimpleITK is not installed. Run: pip install -r requirements.txt") from error
    staple = SimpleITK.STAPLEImageFilter()
    staple.SetForegroundValue(1)
    staple.SetMaximumIterations(STAPLE_ITERATIONS)
    fused = staple.Execute([SimpleITK.GetImageFromArray(vote.astype(np.uint8)) for vote in votes])
    return SimpleITK.GetArrayFromImage(fused)

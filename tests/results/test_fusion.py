"""Test the rules of fusion against the original's recorded values, STAPLE's definition and votes counted by hand."""

import subprocess
import sys

import numpy as np
import pytest
from support.backends import ROOT

from guided_diffusion_core.config import FUSIONS
from guided_diffusion_core.results.fusion import STAPLE_ITERATIONS, binarize, fuse

GOLDEN = dict(np.load(ROOT / "tests" / "golden" / "diffusion.npz"))
TOLERANCE = 5e-7  # float32 against float64: measured 6e-8


def estimated(votes):
    """Estimate the probability of foreground for votes (M, H, W) by STAPLE's definition, in float64.

    The equations are 20 to 23 of Warfield et al. 2004. Like SimpleITK, the iteration starts from the share of
    votes, because two raters do not determine the estimate. It stops when no member's sensitivity or
    specificity changes by more than 1e-7.
    """
    votes = np.asarray(votes, np.float64).reshape(len(votes), -1)
    prior = votes.mean()
    truth = votes.mean(axis=0)
    before = np.inf
    for _ in range(STAPLE_ITERATIONS):
        sensitivity = votes @ truth / truth.sum()
        specificity = (1 - votes) @ (1 - truth) / (1 - truth).sum()
        p = sensitivity[:, None]
        q = specificity[:, None]
        hit = np.where(votes == 1, p, 1 - p).prod(axis=0) * prior
        miss = np.where(votes == 1, 1 - q, q).prod(axis=0) * (1 - prior)
        truth = hit / (hit + miss)
        now = np.stack([sensitivity, specificity])
        if np.abs(now - before).max() <= 1e-7:
            break
        before = now
    return truth


def raters(count, errors, size=24, seed=0):
    """Return votes (count, size, size) on a square; the raters' error rates rise to `errors`."""
    generator = np.random.default_rng(seed)
    truth = np.zeros((size, size), bool)
    truth[size // 4 : size // 2, size // 3 :] = True
    return truth ^ (generator.random((count, size, size)) < np.linspace(0.02, errors, count)[:, None, None])


def test_the_originals_rule_gives_its_recorded_values():
    probability, uncertainty = fuse(GOLDEN["fusion/input"], "upstream")
    np.testing.assert_allclose(probability, GOLDEN["fusion/upstream"][0], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(uncertainty, fuse(GOLDEN["fusion/input"], "mean")[1])
    assert probability.dtype == np.float32
    assert fuse(np.array([[1], [1], [1], [0], [0]]), "upstream")[0] == np.float32(0.36)
    assert fuse(np.array([[1.5], [1.5]]), "upstream")[0] == 1


@pytest.mark.parametrize("count, errors, seed", [(2, 0.1, 0), (3, 0.2, 1), (5, 0.3, 2), (5, 0.05, 3), (9, 0.4, 4)])
def test_staple_is_its_definition(count, errors, seed):
    votes = raters(count, errors, seed=seed)
    expected = estimated(votes).reshape(votes.shape[1:])
    values = np.where(votes, 0.7, 0.3)  # what a vote is, not what a value is, decides
    probability, uncertainty = fuse(values, "staple")
    np.testing.assert_allclose(probability, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(uncertainty**2, expected * (1 - expected), rtol=0, atol=TOLERANCE)
    assert probability.dtype == uncertainty.dtype == np.float32


def test_staple_trusts_the_better_raters():
    """A rater with many errors does not outvote two with few errors, and the result is not the mean."""
    votes = raters(3, 0.4)
    alone = votes[2] & ~votes[0] & ~votes[1]
    assert alone.any() and fuse(votes.astype(float), "staple")[0][alone].max() < 1 / 3


def test_staple_estimates_every_picture_by_itself():
    votes = np.stack([raters(3, 0.2, seed=seed) for seed in range(4)], axis=1).astype(np.float32)
    together = fuse(votes.reshape(3, 2, 2, 24, 24), "staple")
    for k in range(4):
        alone = fuse(votes[:, k], "staple")
        for found, expected in zip(together, alone):
            np.testing.assert_array_equal(found.reshape(4, 24, 24)[k], expected)


@pytest.mark.parametrize("mask", [np.zeros((6, 7)), np.ones((6, 7)), np.eye(6, 7)], ids=["empty", "full", "alike"])
@pytest.mark.parametrize("members", [1, 3])
def test_unanimous_members_are_the_result(mask, members):
    """STAPLE's equations are 0 / 0 if no member votes for a pixel, or none votes against one."""
    for rule in ("majority", "staple"):
        probability, uncertainty = fuse(np.stack([mask] * members), rule)
        np.testing.assert_array_equal(probability, mask)
        np.testing.assert_array_equal(uncertainty, 0)


def test_one_empty_member_among_others():
    mask = np.eye(6, 7)
    probability = fuse(np.stack([mask, mask, np.zeros((6, 7))]), "staple")[0]
    np.testing.assert_allclose(probability, mask, atol=TOLERANCE)


def test_majority_counts_votes_and_a_tie_is_foreground():
    votes = np.array([[0.9, 0.5, 0.2, 0.6], [0.8, 0.1, 0.49, 0.1], [0.6, 0.7, 0.1, -3], [0.51, 0.2, 0.4, 0.2]])[:, None]
    probability, uncertainty = fuse(votes, "majority")
    np.testing.assert_array_equal(probability, [[1, 0.5, 0, 0.25]])
    np.testing.assert_allclose(uncertainty, [[0, 0.5, 0, np.sqrt(3) / 4]], rtol=1e-6)
    np.testing.assert_array_equal(binarize(probability, 0.5), [[True, True, False, False]])


def test_majority_of_values_that_are_votes_is_their_mean():
    votes = raters(5, 0.3).astype(np.float32)
    for found, expected in zip(fuse(votes, "majority"), fuse(votes, "mean")):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("rule", FUSIONS)
def test_every_rule_keeps_shapes_and_ranges(rule):
    members = np.random.default_rng(0).normal(0.5, 0.6, (4, 2, 3, 8, 8)).astype(np.float32)
    probability, uncertainty = fuse(members, rule)
    assert probability.shape == uncertainty.shape == (2, 3, 8, 8)
    assert probability.min() >= 0 and probability.max() <= 1
    assert uncertainty.min() >= 0 and uncertainty.max() <= 0.5


def test_only_staple_imports_simpleitk():
    code = (
        "import sys, numpy as np; from guided_diffusion_core.results.fusion import fuse; votes = np.eye(2)[:, None]; "
        "fuse(votes, 'mean'), fuse(votes, 'majority'), fuse(votes, 'upstream'); assert 'SimpleITK' not in sys.modules;"
        "sys.modules['SimpleITK'] = None; fuse(votes, 'staple')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "UserError: --fusion staple: SimpleITK is not installed" in result.stderr

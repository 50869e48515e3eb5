"""Test scores and fusion against scipy and numpy."""

import numpy as np
import pytest
from scipy.spatial import distance

from guided_diffusion_core.evaluation.metrics import count, pixel_agreement
from guided_diffusion_core.results.fusion import binarize, fuse_mean


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_scipys(seed):
    generator = np.random.default_rng(seed)
    prediction, truth = generator.random((2, 7, 9, 3)) < generator.uniform(0.05, 0.95, (2, 1, 1, 1))
    counts = count(prediction, truth)
    assert counts.dice == pytest.approx(1 - distance.dice(prediction.ravel(), truth.ravel()), abs=1e-12)
    assert counts.iou == pytest.approx(1 - distance.jaccard(prediction.ravel(), truth.ravel()), abs=1e-12)
    assert pixel_agreement(prediction, truth) == pytest.approx(
        1 - distance.hamming(prediction.ravel(), truth.ravel()), abs=1e-12
    )


def test_counts():
    counts = count(np.array([1, 1, 1, 0, 0, 0]), np.array([1, 0, 0, 1, 0, 0]))
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (1, 2, 1, 2)
    assert counts.dice == 2 / 5 and counts.iou == 1 / 4 and not counts.both_empty


def test_empty_masks():
    full = np.ones((3, 3), bool)
    empty = np.zeros((3, 3), bool)
    both = count(empty, empty)
    assert both.both_empty and both.dice is None and both.iou is None
    for one_empty in (count(full, empty), count(empty, full)):
        assert not one_empty.both_empty and one_empty.dice == one_empty.iou == 0


def test_shapes_must_agree():
    for function in (count, pixel_agreement):
        with pytest.raises(ValueError, match="shapes"):
            function(np.zeros((1, 4)), np.zeros((3, 4)))  # would broadcast


def test_fusion():
    members = np.random.default_rng(0).normal(0.5, 0.6, (5, 2, 8, 8)).astype(np.float32)
    probability, uncertainty = fuse_mean(members)
    clipped = members.astype(np.float64).clip(0, 1)
    np.testing.assert_allclose(probability, clipped.sum(0) / 5, rtol=1e-6)
    variance = ((clipped - clipped.sum(0) / 5) ** 2).sum(0) / 5
    np.testing.assert_allclose(uncertainty, np.sqrt(variance), rtol=1e-6)
    assert probability.dtype == uncertainty.dtype == np.float32 and probability.shape == (2, 8, 8)


def test_fusion_of_votes():
    probability, uncertainty = fuse_mean(np.array([1, 1, 1, 0, 0]).reshape(5, 1, 1))  # 3 of 5
    assert probability == np.float32(0.6) and uncertainty == np.float32(np.sqrt(0.24))


def test_fusion_of_one_member():
    probability, uncertainty = fuse_mean(np.array([[[-0.5, 0.25, 1.5]]]))
    np.testing.assert_array_equal(probability, [[0, 0.25, 1]])
    np.testing.assert_array_equal(uncertainty, 0)


def test_the_threshold_itself_is_foreground():
    # 0.6 in float32 is above 0.6 in float64, 0.7 below: neither may decide
    values = np.array([0.6, 0.7, 0.59], np.float32)
    np.testing.assert_array_equal(binarize(values, 0.6), [True, True, False])
    np.testing.assert_array_equal(binarize(values, 0.7), [False, True, False])

"""Test scores, surface distances, intervals and calibration against MedPy, SimpleITK, scikit-image and scipy."""

import nibabel
import numpy as np
import pytest
import SimpleITK
from medpy.metric import binary
from PIL import Image
from scipy import ndimage, spatial
from skimage.measure import find_contours

from guided_diffusion_core import evaluation
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths, phantoms
from guided_diffusion_core.data.dataset import Truth
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.evaluation import calibration, statistics
from guided_diffusion_core.evaluation.scores import mask_scores
from guided_diffusion_core.evaluation.upstream import upstream_scores
from guided_diffusion_core.results.outputs import output_path


def blobs(seed, shape):
    """Return two smooth random masks of a shape that differ in form and size."""
    generator = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(generator.normal(size=shape), 2)
    other = noise + 0.5 * ndimage.gaussian_filter(generator.normal(size=shape), 2)
    return [values > np.quantile(values, 1 - share) for values, share in ((noise, 0.3), (other, 0.2))]


@pytest.mark.parametrize("shape", [(40, 30), (16, 20, 12)])
@pytest.mark.parametrize("seed", range(3))
def test_overlap_scores_are_medpys_and_simpleitks(seed, shape):
    prediction, truth = blobs(seed, shape)
    found = mask_scores(prediction, truth)
    expected = {
        "Dice": binary.dc,
        "IoU": binary.jc,
        "precision": binary.precision,
        "recall": binary.recall,
        "sensitivity": binary.sensitivity,
        "specificity": binary.specificity,
    }
    for metric, function in expected.items():
        assert found[metric] == pytest.approx(function(prediction, truth), abs=1e-12)
    itk = SimpleITK.LabelOverlapMeasuresImageFilter()
    itk.Execute(*(SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (truth, prediction)))
    assert (found["Dice"], found["IoU"]) == pytest.approx((itk.GetDiceCoefficient(), itk.GetJaccardCoefficient()))


@pytest.mark.parametrize(
    "shape, spacing", [((40, 30), (1.0, 1.0)), ((40, 30), (0.5, 2.0)), ((16, 20, 12), (1.0, 0.7, 2.5))]
)
def test_hd95_is_that_of_simpleitks_distances(shape, spacing):
    """Compute distances with ITK's distance map (Maurer et al. 2003) from the border pixels of its label contour."""
    prediction, truth = (np.pad(mask, 1) for mask in blobs(7, shape))
    distances = []
    borders = []
    for mask in (prediction, truth):
        picture = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
        picture.SetSpacing(spacing[::-1])  # ITK's order of axes is numpy's reversed
        border = SimpleITK.BinaryContour(picture, fullyConnected=False)
        maps = SimpleITK.SignedMaurerDistanceMap(border, squaredDistance=False, useImageSpacing=True)
        borders.append(SimpleITK.GetArrayFromImage(border) > 0)
        distances.append(np.maximum(SimpleITK.GetArrayFromImage(maps), 0))
    both = np.concatenate([distances[1][borders[0]], distances[0][borders[1]]])
    found = mask_scores(prediction[1:-1, 1:-1, ...], truth[1:-1, 1:-1, ...], spacing, 1.0)["HD95"]
    assert found == pytest.approx(np.percentile(both, 95), rel=1e-5)  # ITK's distances are float32
    assert found > min(spacing)


@pytest.mark.parametrize("spacing, tolerance", [((1.0, 1.0), 1.0), ((0.5, 2.0), 1.2), ((1.0, 1.0), 2.5)])
def test_nsd_is_that_of_scikit_images_contours(spacing, tolerance):
    """Compute the NSD from contours through cells of 2 x 2 pixels (marching squares); a tree gives the distances."""
    masks = [np.pad(mask, 1) for mask in blobs(9, (40, 30))]
    lengths = []
    places = []
    for mask in masks:
        cells = {}
        for line in find_contours(mask.astype(float), 0.5, fully_connected="low"):
            for start, end in zip(line, line[1:]):
                cell = tuple(np.floor((start + end) / 2 + 1e-9).astype(int))
                cells[cell] = cells.get(cell, 0) + np.linalg.norm((end - start) * spacing)
        places.append(np.array(list(cells)) * spacing)
        lengths.append(np.array(list(cells.values())))
    near = [spatial.cKDTree(places[1 - i]).query(places[i])[0] <= tolerance for i in (0, 1)]
    expected = sum((lengths[i] * near[i]).sum() for i in (0, 1)) / sum(map(np.sum, lengths))
    found = mask_scores(*masks, spacing, tolerance)["NSD"]
    assert found == pytest.approx(expected, abs=1e-12) and 0.2 < found < 1


def test_nsd_of_a_moved_box():
    """Only the parts of two shifted boxes within the tolerance of each other count."""
    truth = np.zeros((30, 30, 30), bool)
    truth[5:15, 5:15, 5:15] = True
    moved = np.roll(truth, 3, axis=0)
    found = [mask_scores(moved, truth, (2.0, 1.0, 1.0), tolerance) for tolerance in (5.9, 6.0)]
    assert found[0]["NSD"] < 1 and found[1]["NSD"] == 1
    assert found[1]["HD95"] == 6


def test_surface_distances_of_empty_masks():
    full = np.ones((5, 5), bool)
    empty = np.zeros((5, 5), bool)
    assert mask_scores(empty, empty, (1, 1), 1.0)["NSD"] is None
    for pair in ((full, empty), (empty, full)):
        found = mask_scores(*pair, (1, 1), 1.0)
        assert found["HD95"] is None and found["NSD"] == 0
        assert found["Dice"] == found["precision"] == found["recall"] == 0
    assert mask_scores(full, full)["specificity"] is None


def scored_volume(folder, spacing, slices):
    """Return the summary of a volume with a spacing; the prediction is the truth shifted by one voxel along x."""
    phantoms.write_brats_phantom(folder / "brats", "A", (20, 24, 16), 0)
    for path in (folder / "brats").rglob("*.nii.gz"):
        image = nibabel.load(path)
        nibabel.Nifti1Image(np.asanyarray(image.dataobj), np.diag([*spacing, 1.0])).to_filename(path)
    truths = list_truths(DataConfig(data_name="BRATS", data_dir=str(folder / "brats"), slices=slices))
    mask = np.roll(np.asanyarray(nibabel.load(truths[0].path).dataobj) > 0, 1, axis=0)
    nibabel.Nifti1Image(mask.astype(np.uint8), np.eye(4)).to_filename(output_path(folder, "A", "mask", True))
    return evaluation.evaluate(folder, truths, 0.5, evaluation.Surfaces(tolerance=1.0))


def test_volumes_take_their_spacing_from_the_truth(tmp_path):
    spacing = (3.0, 1.0, 1.5)
    summary = scored_volume(tmp_path, spacing, "2:9:1")
    truth = np.asanyarray(nibabel.load(summary["metric_per_case"][0]["reference_file"]).dataobj)[..., 2:9] > 0
    found = summary["metric_per_case"][0]
    assert found["metrics"]["whole_tumour"]["HD95"] == binary.hd95(np.roll(truth, 1, axis=0), truth, spacing)
    planes = [
        binary.hd95(np.roll(plane, 1, axis=0), plane, spacing[:2]) if plane.any() else None
        for plane in np.moveaxis(truth, 2, 0)
    ]
    assert found["per_slice"]["whole_tumour"]["HD95"] == planes


def test_slices_with_gaps_have_no_surface_in_space(tmp_path):
    summary = scored_volume(tmp_path, (1.0, 1.0, 1.0), "odd,tumour")
    assert summary["mean"]["whole_tumour"]["HD95"] is summary["mean"]["whole_tumour"]["NSD"] is None
    assert summary["per_slice"]["mean"]["whole_tumour"]["HD95"] > 0


def test_interval_of_the_mean():
    """For many values, the bootstrap interval of the mean is close to that of the normal distribution."""
    values = np.random.default_rng(0).normal(0.8, 0.1, 400).tolist()
    low, high = statistics.mean_interval([*values, None])
    half = 1.96 * np.std(values) / 20
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.1 * half)
    assert statistics.mean_interval(values) == [low, high], "the seed is fixed"
    assert statistics.mean_interval([0.5]) is None and statistics.mean_interval([0.5, 0.5]) == [0.5, 0.5]


class Case:
    """Stand-in for `Scored`, with the fields that `Calibration.add` reads."""

    def __init__(self, truth, probability, uncertainty):
        self.truth = truth[None]
        self.probability = probability[None]
        self.uncertainty = uncertainty[None]
        self.prediction = self.probability >= 0.5


def test_calibration_error():
    """Foreground drawn with the stated probability is calibrated; a probability of twice the certainty is not."""
    generator = np.random.default_rng(1)
    probability = generator.random(200_000).astype(np.float32)
    errors = []
    for chance in (probability, 0.5 + (probability - 0.5) / 2):
        found = calibration.Calibration()
        truth = generator.random(probability.size) < chance
        for part in np.split(np.arange(probability.size), 2):
            found.add(Case(truth[part], probability[part], probability[part]), 0)
        errors.append(found.summary()["ECE"])
    # |p - (0.5 + (p - 0.5) / 2)| = |p - 0.5| / 2, whose mean over [0, 1] is 1/8
    assert errors[0] < 0.01 and errors[1] == pytest.approx(0.125, abs=0.01)


def test_bins_of_the_calibration():
    found = calibration.Calibration()
    probability = np.array([0.0, 0.05, 0.1, 0.95, 1.0], np.float32)
    found.add(Case(np.array([False, True, True, True, True]), probability, probability), 0)
    bins = found.summary()["bins"]
    assert [(row["from"], row["pixels"], row["share_of_foreground"]) for row in bins] == [
        (0.0, 2, 0.5),
        (0.1, 1, 1.0),
        (0.9, 2, 1.0),
    ]
    assert bins[0]["mean_probability"] == pytest.approx(0.025)
    gaps = 2 * abs(0.025 - 0.5) + abs(0.1 - 1) + 2 * abs(0.975 - 1)
    assert found.summary()["ECE"] == pytest.approx(gaps / 5, abs=1e-7)


def test_dice_against_retained_share():
    """Compute the curve by hand: sort the pixels, keep the share, count."""
    generator = np.random.default_rng(2)
    prediction, truth = generator.random((2, 1000)) < 0.4
    uncertainty = generator.permutation(1000) / 1000
    order = np.argsort(uncertainty)
    expected = []
    for share in calibration.SHARES:
        kept = order[: round(1000 * share)]
        expected.append(binary.dc(prediction[kept], truth[kept]))
    assert calibration.retained_dice(prediction, truth, uncertainty) == pytest.approx(expected, abs=1e-12)


def test_retained_share_of_ties_does_not_depend_on_the_order():
    prediction = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], bool)
    truth = np.array([1, 1, 0, 1, 0, 0, 0, 0, 0, 0], bool)
    flat = np.zeros(10)
    assert calibration.retained_dice(prediction, truth, flat) == pytest.approx([2 / 3] * len(calibration.SHARES))
    away = calibration.retained_dice(prediction, truth, (prediction | truth).astype(float))
    assert away[calibration.SHARES.index(0.6)] is None, "no foreground is left"
    # 0.6 keeps the first four and two of the four that tie: TP 2 + 1/2, FP 1, FN 1/2
    prediction, truth = np.array([[1, 1, 1, 0, 1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 1, 1, 0, 0, 0, 1]], bool)
    curve = calibration.retained_dice(prediction, truth, np.repeat([0.0, 0.1, 0.2], [4, 4, 2]))
    assert curve[calibration.SHARES.index(0.6)] == pytest.approx(5 / 6.5)


def original_scores(prediction, truth):
    """Compute the original's eval_seg for one 8-bit picture of 256 x 256 in torch's float32, from its description."""
    prediction = prediction.astype(np.float32)
    truth = truth.astype(np.float32) / np.float32(255)
    with np.errstate(invalid="ignore"):
        prediction = prediction / prediction.max()  # NaN for an empty one
    dice = 0.0
    iou = 0.0
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.9):
        p, t = ((values > np.float32(threshold)).astype(int) for values in (prediction, truth))
        dice += (2 * (p * t).sum() + 0.0001) / (p.sum() + t.sum() + 0.0001) / 5
        iou += ((p & t).sum() + 1e-6) / ((p | t).sum() + 1e-6) / 5
    return dice, iou


@pytest.mark.parametrize("kind", ["random", "empty prediction", "empty truth", "both empty", "faint"])
def test_upstream_protocol(kind):
    generator = np.random.default_rng(5)
    prediction, truth = generator.integers(0, 256, (2, 256, 256)).astype(np.uint8)
    if kind in ("empty prediction", "both empty"):
        prediction[:] = 0
    if kind in ("empty truth", "both empty"):
        truth[:] = 0
    if kind == "faint":
        prediction //= 4
    found = upstream_scores(prediction, truth)
    assert found == pytest.approx(original_scores(prediction, truth), abs=1e-9)
    if kind == "both empty":
        assert found == (1, 1)


def test_upstream_protocol_of_files(tmp_path):
    generator = np.random.default_rng(6)
    truths = []
    expected = []
    for name in ("a", "b"):
        truth = generator.random((300, 200)) < 0.5
        probability = (generator.integers(0, 200, (300, 200)) / 255).astype(np.float32)
        Image.fromarray(truth.astype(np.uint8) * 255).save(tmp_path / f"{name}.png")
        Image.fromarray(probability).save(tmp_path / f"{name}_probability.tiff")
        truths.append(Truth(name, str(tmp_path / f"{name}.png")))
        small = [
            np.asarray(
                Image.fromarray(np.round(255 * picture).astype(np.uint8)).resize((256, 256), Image.Resampling.BILINEAR)
            )
            for picture in (probability, truth * 1.0)
        ]
        expected.append(original_scores(*small))
    summary = evaluation.evaluate_upstream(tmp_path, truths)
    assert list(summary["mean"]["mask"].values()) == pytest.approx(np.mean(expected, axis=0), abs=1e-9)
    assert list(summary["mean"]["mask"]) == ["upstream_Dice", "upstream_IoU"] and summary["protocol"] == "upstream"
    assert "not comparable" in evaluation.format_upstream(summary)


def test_upstream_protocol_refuses_volumes(tmp_path):
    with pytest.raises(UserError, match="found volumes; expected 2D images"):
        evaluation.evaluate_upstream(tmp_path, [Truth("A", "a.nii.gz", (0, 1))])

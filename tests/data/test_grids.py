"""Test voxel grids: exact changes of axes against nibabel, and when two grids have the same points."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from guided_diffusion_core.data.formats.grids import (
    AUTO,
    STORED,
    TOLERANCE,
    Geometry,
    Turn,
    common_orientation,
)

SHAPE = (5, 4, 3)
CODES = ["".join(code) for axes in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*axes)]
# an oblique grid with voxels of three sizes
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([0.7, 1.1, 3]), [-31.5, 12.25, 7]
)


def image_of(code, affine=OBLIQUE):
    """Return nibabel's image of numbered voxels, brought into an orientation."""
    image = nib.Nifti1Image(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), affine)
    target = nib.orientations.axcodes2ornt(code)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), target))


def grid_of(image):
    return Geometry(image.shape, image.affine, image.header)


@pytest.mark.parametrize("code", CODES)
def test_every_orientation_is_brought_onto_every_other_as_nibabel_does(code):
    """Compare voxels, shape and affine with nibabel's for a change of axes, and undo it."""
    source = image_of(code)
    voxels = np.asarray(source.dataobj)
    assert grid_of(source).orientation == code
    for other in CODES[:: 1 if code == "RAS" else 11]:
        expected = image_of(other)
        for turn in (grid_of(source).turn_onto(grid_of(expected)), grid_of(source).turn_to(other)):
            np.testing.assert_array_equal(turn.apply(voxels), np.asarray(expected.dataobj))
            np.testing.assert_array_equal(turn.undo(turn.apply(voxels)), voxels)
            turned = grid_of(source).turned(turn)
            assert turned.shape == turn.shape(voxels.shape) == expected.shape
            np.testing.assert_allclose(turned.affine, expected.affine, atol=1e-9)


def test_two_changes_of_axes_are_one():
    random = np.random.default_rng(0)
    voxels = random.normal(size=(2, *SHAPE))  # further axes in front stay where they are
    for _ in range(20):
        first, second = (Turn(tuple(random.permutation(3).tolist()), tuple(random.random(3) < 0.5)) for _ in range(2))
        np.testing.assert_array_equal(first.then(second).apply(voxels), second.apply(first.apply(voxels)))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("voxels, same", [(0.5 * TOLERANCE, True), (2 * TOLERANCE, False), (0.5, False), (1, False)])
def test_the_tolerance_is_a_share_of_a_voxel(axis, voxels, same):
    """Move a grid along an axis by a part of its voxel, whose sides are 0.7 to 3 mm long."""
    step = np.eye(4)
    step[axis, 3] = voxels
    moved = Geometry(SHAPE, OBLIQUE @ step)
    assert moved.agrees_with(Geometry(SHAPE, OBLIQUE)) == same


@pytest.mark.parametrize(
    "change",
    [
        np.diag([1, 1, 2, 1.0]),  # other spacing
        np.diag([1, -1, 1, 1.0]),  # mirrored about the first voxel
        nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2), [0, 0, 0]),  # turned by 11 degrees
        nib.affines.from_matvec(np.eye(3), [0, 0, 1e300]),
        np.full((4, 4), np.nan),
        np.diag([1, 1, 0, 1.0]),  # no volume
        nib.affines.from_matvec([[1, 0.5, 0], [0, 1, 0], [0, 0, 1]], [0, 0, 0]),  # sheared
    ],
)
def test_other_points(change):
    """Refuse any grid whose points are others, in both directions."""
    first = Geometry(SHAPE, OBLIQUE)
    second = Geometry(SHAPE, OBLIQUE @ change)
    assert first.turn_onto(second) is None and second.turn_onto(first) is None
    assert first.turn_onto(Geometry((5, 4, 2), OBLIQUE)) is None


def test_a_qform_in_32_bits_is_the_same_grid():
    """A quaternion near half a turn loses digits, which moves the far corner of a large volume."""
    turn = nib.eulerangles.euler2mat(np.pi - 1e-4, 1e-4, 2e-4)
    affine = nib.affines.from_matvec(turn, [-90.0, 126, -72])
    image = nib.Nifti1Image(np.zeros((256, 256, 180), np.uint8), affine)
    image.header.set_qform(affine, code=1)
    image.header.set_sform(None, code=0)
    qform = Geometry(image.shape, image.header.get_best_affine())
    assert not np.array_equal(qform.affine, affine)
    assert qform.agrees_with(Geometry(image.shape, affine))


def test_the_orientation_of_most_volumes():
    def grids(codes):
        return [grid_of(image_of(code)) for code in codes]

    nowhere = Geometry(SHAPE, np.eye(4), is_placed=False)
    assert common_orientation(AUTO, grids(["RAS", "LPS", "LPS"])) == "LPS"
    assert common_orientation(AUTO, grids(["PIR", "LPS", "RAS"])) == "LPS"  # of several, axial slices
    assert common_orientation(AUTO, grids(["PIR", "ASR"])) == "PIR"
    assert common_orientation(AUTO, [nowhere, *grids(["LAS"])]) == "LAS"
    assert common_orientation(AUTO, [nowhere]) == common_orientation(AUTO, []) == STORED
    assert common_orientation("ASL", grids(["RAS"])) == "ASL" and common_orientation(STORED, grids(["RAS"])) == STORED
    assert nowhere.turn_to("LPS").is_identity and grid_of(image_of("RAS")).turn_to(STORED).is_identity

"""Test label maps: the stored values of each name, and every input that they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.layouts import brats, refuge2
from guided_diffusion_core.errors import UserError

REGIONS = brats.REGIONS
ALL = REGIONS.select("whole_tumour,tumour_core,enhancing", ())


@given(st.lists(st.sampled_from([0, 1, 2, 4]), min_size=1, max_size=60), st.permutations(REGIONS.names))
def test_brats_regions_are_the_challenges(values, names):
    """Compare the masks, in the order of the names, with the codes that the challenge defines."""
    codes = {"whole_tumour": {1, 2, 4}, "tumour_core": {1, 4}, "enhancing": {4}}
    masks = REGIONS.select(",".join(names), ()).masks(np.array(values), "seg")
    assert masks.dtype == bool and masks.shape == (3, len(values))
    for mask, name in zip(masks, names):
        assert mask.tolist() == [value in codes[name] for value in values]


@pytest.mark.parametrize("value", [3, 4])
def test_enhancing_tumour_has_the_code_of_either_time(value):
    masks = ALL.masks(np.array([0, 1, 2, value]), "seg")
    assert masks.astype(int).tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]


def test_both_codes_in_one_file():
    with pytest.raises(UserError, match="a_seg.nii: found the label values 3 and 4 in one file"):
        ALL.masks(np.array([0, 3, 4]), "a_seg.nii")


def test_from_2023_on_code_4_is_no_tumour():
    """Refuse code 4 in the new file names, because it is the resection cavity in BraTS-GLI of 2024."""
    files = brats.BratsFiles("BraTS-GLI-00000-000", "folder", {})
    assert files.label_map_of_case(ALL).masks(np.array([3]), "seg").all()
    with pytest.raises(UserError, match="label values 4; expected only the values 0, 1, 2, 3"):
        files.label_map_of_case(ALL).masks(np.array([0, 4]), "seg")


def test_whole_tumour_alone_is_everything_above_zero():
    single = REGIONS.select("", brats.DEFAULT_LABELS)
    assert single.names == ("whole_tumour",)
    assert single.masks(np.array([-1, 0, 1, 3, 4, 255]), "seg").astype(int).tolist() == [[0, 0, 1, 1, 1, 1]]


def test_refuge_cup_lies_in_the_disc_and_zero_is_no_background():
    masks = refuge2.LABELS.select("disc,cup", ()).masks(np.array([[0, 128], [255, 255]]), "T0001.png")
    assert masks.astype(int).tolist() == [[[1, 1], [0, 0]], [[1, 0], [0, 0]]]
    cup = refuge2.LABELS.select("cup", ()).masks(np.array([0, 128, 255]), "T0001.png")
    assert cup.astype(int).tolist() == [[1, 0, 0]]
    with pytest.raises(UserError, match="T0001.png: found label values 127, 254; expected only the values 0, 128, 255"):
        refuge2.LABELS.masks(np.array([0, 127, 128, 254, 255]), "T0001.png")


@pytest.mark.parametrize("values", [[0.5], [np.nan], [-1], [7]])
def test_values_that_no_name_has(values):
    with pytest.raises(UserError, match="found label values"):
        ALL.masks(np.array(values), "seg")


def test_many_unknown_values_are_counted():
    with pytest.raises(UserError, match="5, 6, 7, 8, 9, 10, 11, 12 and 88 more"):
        ALL.masks(np.arange(5, 101), "seg")


def test_labels_stored_as_floating_point():
    np.testing.assert_array_equal(ALL.masks(np.array([0.0, 2.0, 4.0]), "seg"), ALL.masks(np.array([0, 2, 4]), "seg"))


@pytest.mark.parametrize(
    "spec, message",
    [
        ("tumour", "'tumour'; expected some of whole_tumour, tumour_core, enhancing"),
        ("enhancing,enhancing", "different names"),
        ("Whole Tumour", "different names"),
        ("enhancing,", "different names"),
    ],
)
def test_wrong_names(spec, message):
    with pytest.raises(UserError, match=f"--labels.*{message}"):
        REGIONS.select(spec, ())


def test_spaces_beside_names_are_no_part_of_them():
    assert REGIONS.select(" enhancing , tumour_core", ()).names == ("enhancing", "tumour_core")


@pytest.mark.parametrize(
    "names, values", [(("A",), (None,)), (("a", "a"), (None, None)), (("a",), (None, None)), ((), ())]
)
def test_a_map_that_is_none(names, values):
    with pytest.raises(ValueError, match="label names"):
        LabelMap(names, values)

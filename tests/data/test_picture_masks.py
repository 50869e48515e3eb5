"""Test the one reader of picture masks: each way of storing a mask, in training, scoring and the check alike."""

import json

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import picture_kinds as kinds
from support.agreement import agree
from support.picture_kinds import MASK, SHAPE, palette, write

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_files, list_truths, open_dataset
from guided_diffusion_core.data.check.checking import Check
from guided_diffusion_core.data.check.inventory import take_inventory
from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.formats.masks import read_masks
from guided_diffusion_core.data.formats.transforms import resize_nearest
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.results.outputs import read_output

PICTURE = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
KNOWN = "DDTI"  # a layout of one label: several colours are one foreground
PLAIN = "IMAGES"  # files of unknown origin: several colours may be labels
SIZE = 32


def folder_of(folder, ending, mask):
    write(folder / "images" / "a.png", PICTURE)
    write(folder / "masks" / f"a.{ending}", mask)
    return folder


def require_mask(folder, layout, expected):
    """Require a mask in training and in scoring, and that the check has no error."""
    assert agree(folder, layout) == []
    config = DataConfig(layout, str(folder))
    [truth] = list_truths(config, "Training")
    np.testing.assert_array_equal(read_truth_masks(truth)[0], expected)
    trained = open_dataset(config, SIZE, "Training", need_masks=True)[0].mask[0]
    np.testing.assert_array_equal(trained, resize_nearest(expected, (SIZE, SIZE)))


def warnings_of(folder, layout):
    config = DataConfig(layout, str(folder))
    return Check({"train": take_inventory(lambda: list_files(config, "Training", True))}, 1).problems


@pytest.mark.parametrize("layout", [KNOWN, PLAIN])
@pytest.mark.parametrize("kind", kinds.ONE_MASK)
def test_one_mask_in_every_way_of_storing_it(tmp_path, kind, layout):
    require_mask(folder_of(tmp_path, *kinds.ONE_MASK[kind]), layout, MASK)


@pytest.mark.parametrize("layout", [KNOWN, PLAIN])
@pytest.mark.parametrize("kind", kinds.SOFT_EDGES)
def test_half_is_the_edge(tmp_path, kind, layout):
    ending, picture, expected = kinds.SOFT_EDGES[kind]
    assert 0 < expected.sum() < expected.size
    require_mask(folder_of(tmp_path, ending, picture), layout, expected)
    assert [problem.kind for problem in warnings_of(tmp_path, layout)] == ["grey mask"]


def test_colours_that_jpeg_invents(tmp_path):
    ending, picture, expected = kinds.SOFT_EDGES_OF_JPEG
    path = write(tmp_path / f"a.{ending}", picture)
    assert 2 < len(np.unique(np.asarray(Image.open(path)).reshape(-1, 3), axis=0)) <= 8
    np.testing.assert_array_equal(read_masks(path, LabelMap())[0], expected)


@pytest.mark.parametrize("kind", kinds.SEVERAL_COLOURS)
def test_several_colours(tmp_path, kind):
    folder_of(tmp_path, *kinds.SEVERAL_COLOURS[kind])
    require_mask(tmp_path, KNOWN, MASK)
    assert "coloured mask" in [problem.kind for problem in warnings_of(tmp_path, KNOWN)]
    [reason] = agree(tmp_path, PLAIN)
    assert "labels.json" in reason


@pytest.mark.parametrize("layout", [KNOWN, PLAIN])
@pytest.mark.parametrize("kind", kinds.REFUSED)
def test_refused_with_the_same_words_everywhere(tmp_path, kind, layout):
    ending, picture, words = kinds.REFUSED[kind]
    folder_of(tmp_path, ending, picture)
    [reason] = agree(tmp_path, layout)
    assert f"a.{ending}: found " in reason
    with pytest.raises(UserError, match=words) as refused:
        read_truth_masks(list_truths(DataConfig(layout, str(tmp_path)), "Training")[0])
    assert str(refused.value) == reason


def test_zero_and_one_are_a_mask_only_where_the_origin_is_unknown(tmp_path):
    for dtype, ending in ((np.uint8, "png"), (np.uint16, "png"), (np.int32, "tif")):
        folder = folder_of(tmp_path / np.dtype(dtype).name, ending, kinds.by_mask(1, dtype=dtype))
        require_mask(folder, PLAIN, MASK)
        [reason] = agree(folder, KNOWN)
        assert "at most 1" in reason


def test_a_black_drawing_may_be_an_empty_mask(tmp_path):
    """The check says so, since nothing in the file tells them apart."""
    for folder, kinds_of_problems in (("alpha of black", ["black mask"]), ("alpha of white", [])):
        folder_of(tmp_path / folder, *kinds.ONE_MASK[folder])
        assert [problem.kind for problem in warnings_of(tmp_path / folder, PLAIN)] == kinds_of_problems


def test_the_border_of_voc_is_no_foreground(tmp_path):
    indices = np.where(kinds.RIGHT, 1, np.where(kinds.LEFT, 255, 0))
    require_mask(folder_of(tmp_path, "png", palette(indices, kinds.VOC)), PLAIN, kinds.RIGHT)
    assert [problem.kind for problem in warnings_of(tmp_path, PLAIN)] == ["border"]


class TestLabels:
    """Sets with a labels.json, by the indices of a palette."""

    INDICES = kinds.LEFT + 2 * kinds.RIGHT

    def folder(self, tmp_path, picture, background=0):
        folder_of(tmp_path, "png", picture)
        (tmp_path / "labels.json").write_text(json.dumps({"background": background, "left": 1, "right": 2}))
        return tmp_path

    def test_indices(self, tmp_path):
        require_mask(self.folder(tmp_path, palette(self.INDICES, kinds.VOC)), PLAIN, kinds.LEFT)

    def test_border(self, tmp_path):
        indices = self.INDICES.copy()
        indices[0] = 255
        picture = palette(indices, kinds.VOC)
        [reason] = agree(self.folder(tmp_path, picture), PLAIN)
        assert "index 255" in reason and '"background": [0, 255]' in reason
        require_mask(self.folder(tmp_path, picture, [0, 255]), PLAIN, kinds.LEFT)

    def test_255_in_grey_is_an_unknown_label(self, tmp_path):
        [reason] = agree(self.folder(tmp_path, self.INDICES.astype(np.uint8) * 127), PLAIN)
        assert "label values 127, 254" in reason

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
    def test_depths(self, tmp_path, dtype):
        folder = self.folder(tmp_path, self.INDICES.astype(np.uint8))
        (folder / "masks/a.png").unlink()
        write(folder / "masks/a.tif", self.INDICES.astype(dtype))
        require_mask(folder, PLAIN, kinds.LEFT)


def test_a_threshold_makes_fractions_a_mask(tmp_path):
    path = write(tmp_path / "a.tif", kinds.SOFT.astype(np.float32))
    expected = kinds.SOFT.astype(np.float32) >= 0.25
    np.testing.assert_array_equal(read_masks(path, LabelMap(threshold=0.25))[0], expected)
    folder = folder_of(tmp_path, "tif", path.read_bytes())
    assert agree(folder, PLAIN, mask_threshold=0.25) == [] and agree(folder, PLAIN)
    [truth] = list_truths(DataConfig(PLAIN, str(folder), mask_threshold=0.25), "Training")
    np.testing.assert_array_equal(read_truth_masks(truth)[0], expected)


@pytest.mark.parametrize("kind", ["grey", "alpha of white", "blue", "palette", "0 and 65535", "0.0 and 1.0"])
def test_the_original_rule_takes_all_that_is_above_zero(tmp_path, kind):
    ending, picture = kinds.ONE_MASK[kind]
    path = write(tmp_path / f"a.{ending}", picture)
    resized = Image.fromarray(MASK.astype(np.uint8) * 255).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(read_masks(path, LabelMap(), 20, True)[0], np.asarray(resized) > 0)


@pytest.mark.parametrize("kind", ["alpha of white", "palette", "one bit", "border", "0 and 65535"])
def test_predictions_are_read_by_the_same_rules(tmp_path, kind):
    _, picture = kinds.ONE_MASK[kind]
    np.testing.assert_array_equal(read_output(str(write(tmp_path / "a_mask.png", picture))), MASK)


values = st.lists(st.integers(0, 255), min_size=1, max_size=12)
modes = st.sampled_from(["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "F/255", "YCbCr"])


@settings(max_examples=120, deadline=None, database=None)
@given(values=values, mode=modes, layout=st.sampled_from([KNOWN, PLAIN]), seed=st.integers(0, 999))
def test_any_mask_is_trained_on_as_it_is_scored_or_refused_by_all(tmp_path_factory, values, mode, layout, seed):
    folder = tmp_path_factory.mktemp("any")
    stored = kinds.any_picture(mode, values, seed)
    folder_of(folder, "tif" if mode not in ("LA", "RGBA") else "png", stored)
    if agree(folder, layout) == []:
        config = DataConfig(layout, str(folder))
        truth = read_truth_masks(list_truths(config, "Training")[0])
        trained = open_dataset(config, SIZE, "Training", need_masks=True)[0].mask
        np.testing.assert_array_equal(trained, resize_nearest(truth, (SIZE, SIZE)))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("label_map", [LabelMap(), LabelMap(("a",), (frozenset({1}),))], ids=["binary", "labels"])
def test_a_tiff_mask_whose_zero_is_white_is_refused(tmp_path, dtype, label_map):
    """Pillow inverts those of 8 bits and no others, and tifffile writes truth values in this way by itself."""
    values = np.zeros(SHAPE, dtype)
    values[4:9, 4:9] = 1
    path = tmp_path / "images" / "mask.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, values, photometric="miniswhite")
    with pytest.raises(UserError, match="mask.tif: found a TIFF mask of which 0 is white"):
        read_masks(path, label_map)
    assert agree(folder_of(tmp_path / "set", "tif", path.read_bytes()), KNOWN)

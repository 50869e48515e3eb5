"""Test the ISIC layout: its pairs of photographs and masks, and every input that it refuses."""

import shutil

import numpy as np
import pytest
from PIL import Image

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths, open_dataset, phantoms
from guided_diffusion_core.errors import UserError

TEST_DATA = "ISBI2016_ISIC_Part1_Test_Data"
TEST_TRUTH = "ISBI2016_ISIC_Part1_Test_GroundTruth"


def isic_config(folder, **settings):
    return DataConfig(data_name="ISIC", data_dir=str(folder), **settings)


def save_png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


@pytest.fixture
def isic_folder(tmp_path):
    phantoms.write_isic_phantoms(tmp_path / "isic", train=3, test=2, size=64, seed=1)
    return tmp_path / "isic"


def test_pairs_of_each_split(isic_folder):
    training = open_dataset(isic_config(isic_folder), 32, "Training", need_masks=True)
    test = open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)
    assert [case.name for case in training.cases()] == ["ISIC_0000000", "ISIC_0000001", "ISIC_0000002"]
    assert [case.name for case in test.cases()] == ["ISIC_0000003", "ISIC_0000004"]
    assert training.in_channels == 3 and "255" in training.normalisation


def test_example_is_the_resized_picture_and_mask(isic_folder):
    example = open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)[0]
    image = Image.open(isic_folder / "Test" / TEST_DATA / "ISIC_0000003.jpg")
    mask = Image.open(isic_folder / "Test" / TEST_TRUTH / "ISIC_0000003_Segmentation.png")
    expected = np.asarray(image.resize((32, 32), Image.BILINEAR)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(example.image, expected, atol=1e-6)
    expected_mask = np.asarray(mask.resize((32, 32), Image.NEAREST)) == 255
    np.testing.assert_array_equal(example.mask[0], expected_mask)
    assert example.image.dtype == example.mask.dtype == np.float32
    assert example.mask.shape == (1, 32, 32) and example.noise_key == "ISIC_0000003"


def test_upstream_rule_grows_masks(isic_folder):
    nearest = open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)[0].mask
    upstream = open_dataset(isic_config(isic_folder, upstream_compat=True), 32, "Test", True)[0].mask
    mask = Image.open(isic_folder / "Test" / TEST_TRUTH / "ISIC_0000003_Segmentation.png")
    np.testing.assert_array_equal(upstream[0], np.asarray(mask.resize((32, 32), Image.BILINEAR)) > 0)
    assert (upstream >= nearest).all() and upstream.sum() > nearest.sum()


def test_names_of_any_case_and_foreign_files(tmp_path):
    picture = np.full((40, 48, 3), 90)
    save_png(tmp_path / "x_DATA" / "a.PNG", picture)
    save_png(tmp_path / "x_DATA" / "a_superpixels.png", picture)
    (tmp_path / "x_DATA" / "LICENSE.txt").write_text("words")
    save_png(tmp_path / "x_GROUNDTRUTH" / "A_segmentation.PNG", np.full((40, 48), 255))
    dataset = open_dataset(isic_config(tmp_path), 32, "Training", need_masks=True)
    assert [case.shape for case in dataset.cases()] == [(40, 48)] and dataset[0].mask.all()


def test_data_folder_given_itself(isic_folder):
    dataset = open_dataset(isic_config(isic_folder / "Test" / TEST_DATA), 32, "Test", need_masks=True)
    assert len(dataset) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_csv_of_the_original(isic_folder, encoding):
    folder = isic_folder / "Test"
    shutil.move(folder / TEST_DATA, folder / "图像")
    text = f",img,seg\n0,图像/ISIC_0000004.jpg,{TEST_TRUTH}/ISIC_0000004_Segmentation.png\n"
    (folder / "ISBI2016_ISIC_Part3B_Test_GroundTruth.csv").write_bytes(text.encode(encoding))
    dataset = open_dataset(isic_config(folder), 32, "Test", need_masks=True)
    assert [case.name for case in dataset.cases()] == ["ISIC_0000004"] and dataset[0].mask.any()


def test_csv_of_other_columns_is_passed_over(isic_folder):
    table = isic_folder / "ISBI2016_ISIC_Part3B_Test_GroundTruth.csv"
    table.write_text("ISIC_0000003,benign\nISIC_0000004,malignant\n")
    assert len(open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)) == 2


def test_csv_naming_a_missing_image(isic_folder):
    (isic_folder / "a_Test_GroundTruth.csv").write_text(",img,seg\n0,nowhere.jpg,nowhere.png\n")
    with pytest.raises(UserError, match="nowhere.jpg"):
        open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)


def test_label_free(isic_folder, tmp_path):
    shutil.rmtree(isic_folder / "Test" / TEST_TRUTH)
    shutil.copytree(isic_folder / "Test" / TEST_DATA, tmp_path / "plain")
    for folder in (isic_folder, tmp_path / "plain"):
        dataset = open_dataset(isic_config(folder), 32, "Test", need_masks=False)
        assert len(dataset) == 2 and dataset[1].mask is None
        with pytest.raises(UserError, match="2 of 2 images without a mask"):
            open_dataset(isic_config(folder), 32, "Test", need_masks=True)


def test_one_missing_mask_is_named(isic_folder):
    (isic_folder / "Test" / TEST_TRUTH / "ISIC_0000004_Segmentation.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images without a mask \(ISIC_0000004\)"):
        open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)


def test_mask_of_another_shape(isic_folder):
    save_png(isic_folder / "Test" / TEST_TRUTH / "ISIC_0000004_Segmentation.png", np.zeros((10, 20)))
    with pytest.raises(UserError, match="20 x 10 pixels.* 64 pixels"):
        open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)


@pytest.mark.parametrize(
    "folder, file", [(TEST_DATA, "ISIC_0000004.jpg"), (TEST_TRUTH, "ISIC_0000004_Segmentation.png")]
)
def test_file_that_is_no_image(isic_folder, folder, file):
    (isic_folder / "Test" / folder / file).write_text("not a picture")
    with pytest.raises(UserError, match=file):
        open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)


@pytest.mark.parametrize(
    "folder, file", [(TEST_DATA, "ISIC_0000003.jpg"), (TEST_TRUTH, "ISIC_0000003_Segmentation.png")]
)
def test_truncated_image(isic_folder, folder, file):
    path = isic_folder / "Test" / folder / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=file):
        open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)[0]


def test_mask_of_labels_zero_and_one(isic_folder):
    path = isic_folder / "Test" / TEST_TRUTH / "ISIC_0000003_Segmentation.png"
    save_png(path, np.asarray(Image.open(path)) // 255)
    with pytest.raises(UserError, match="at most 1; expected 0 and 255"):
        open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)[0]


@pytest.mark.parametrize("mode", ["1", "RGB", "P", "I;16"])
def test_masks_of_other_modes(tmp_path, mode):
    values = np.zeros((40, 48), np.uint8)
    values[10:20, 5:30] = 255
    if mode == "I;16":
        picture = Image.fromarray(values.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(values).convert(mode)
    (tmp_path / "x_Data").mkdir()
    (tmp_path / "x_GroundTruth").mkdir()
    picture.save(tmp_path / "x_GroundTruth" / "a_Segmentation.png")
    save_png(tmp_path / "x_Data" / "a.png", np.zeros((40, 48, 3)))
    mask = open_dataset(isic_config(tmp_path), 32, "Training", need_masks=True)[0].mask[0]
    expected = np.asarray(Image.fromarray(values).resize((32, 32), Image.NEAREST)) > 0
    np.testing.assert_array_equal(mask, expected)


def test_names_used_twice(isic_folder):
    shutil.copytree(isic_folder / "Test", isic_folder / "Copy")
    with pytest.raises(UserError, match="2 case names used more than once(.|\n)*ISIC_0000003: .*Copy"):
        open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)


def test_truths_of_a_set_and_of_a_folder_of_masks(isic_folder, tmp_path):
    shutil.copytree(isic_folder / "Test" / TEST_TRUTH, tmp_path / "masks")
    for folder in (isic_folder, isic_folder / "Test" / TEST_TRUTH, tmp_path / "masks"):
        truths = list_truths(isic_config(folder))
        assert [truth.name for truth in truths] == ["ISIC_0000003", "ISIC_0000004"]
        assert truths[0].path.endswith("ISIC_0000003_Segmentation.png") and truths[0].slices is None


def test_masks_alone_are_no_dataset(isic_folder):
    with pytest.raises(UserError, match="masks but no image"):
        open_dataset(isic_config(isic_folder / "Test" / TEST_TRUTH), 32, "Test", need_masks=False)


def test_slices_of_images(isic_folder):
    with pytest.raises(UserError, match="--slices"):
        open_dataset(isic_config(isic_folder, slices="odd"), 32, "Test", need_masks=True)

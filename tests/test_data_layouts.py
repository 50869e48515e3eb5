"""The dataset layouts: what they find, how they prepare it, and every input that they refuse."""
import gzip
import itertools
import pickle
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import LAYOUTS, brats, isic, list_truths, open_dataset, phantoms, volume_cases
from guided_diffusion_core.data.transforms import resize_nearest
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError

TEST_DATA, TEST_TRUTH = "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"


def isic_config(folder, **settings):
    return DataConfig(data_name="ISIC", data_dir=str(folder), **settings)


def brats_config(folder, **settings):
    return DataConfig(data_name="BRATS", data_dir=str(folder), **settings)


def save_png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


@pytest.fixture
def isic_folder(tmp_path):
    phantoms.write_isic_phantoms(tmp_path / "isic", train=3, test=2, size=64, seed=1)
    return tmp_path / "isic"


@pytest.fixture
def brats_folder(tmp_path):
    for seed, name in enumerate(("BraTS2021_00001", "BraTS20_Training_002")):
        phantoms.write_brats_phantom(tmp_path / "brats", name, (20, 24, 10 + seed), seed)
    return tmp_path / "brats"


class TestIsic:
    def test_pairs_of_each_split(self, isic_folder):
        training = open_dataset(isic_config(isic_folder), 32, "Training", need_masks=True)
        test = open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)
        assert [case.name for case in training.cases()] == ["ISIC_0000000", "ISIC_0000001", "ISIC_0000002"]
        assert [case.name for case in test.cases()] == ["ISIC_0000003", "ISIC_0000004"]
        assert training.in_channels == 3 and "255" in training.normalisation

    def test_example_is_the_resized_picture_and_mask(self, isic_folder):
        example = open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)[0]
        image = Image.open(isic_folder / "Test" / TEST_DATA / "ISIC_0000003.jpg")
        mask = Image.open(isic_folder / "Test" / TEST_TRUTH / "ISIC_0000003_Segmentation.png")
        expected = np.asarray(image.resize((32, 32), Image.BILINEAR)).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(example.image, expected, atol=1e-6)
        expected_mask = np.asarray(mask.resize((32, 32), Image.NEAREST)) == 255
        np.testing.assert_array_equal(example.mask[0], expected_mask)
        assert example.image.dtype == example.mask.dtype == np.float32
        assert example.mask.shape == (1, 32, 32) and example.noise_key == "ISIC_0000003"

    def test_upstream_rule_grows_masks(self, isic_folder):
        nearest = open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)[0].mask
        upstream = open_dataset(isic_config(isic_folder, upstream_compat=True), 32, "Test", True)[0].mask
        mask = Image.open(isic_folder / "Test" / TEST_TRUTH / "ISIC_0000003_Segmentation.png")
        np.testing.assert_array_equal(upstream[0], np.asarray(mask.resize((32, 32), Image.BILINEAR)) > 0)
        assert (upstream >= nearest).all() and upstream.sum() > nearest.sum()

    def test_names_of_any_case_and_foreign_files(self, tmp_path):
        picture = np.full((40, 48, 3), 90)
        save_png(tmp_path / "x_DATA" / "a.PNG", picture)
        save_png(tmp_path / "x_DATA" / "a_superpixels.png", picture)
        (tmp_path / "x_DATA" / "LICENSE.txt").write_text("words")
        save_png(tmp_path / "x_GROUNDTRUTH" / "A_segmentation.PNG", np.full((40, 48), 255))
        dataset = open_dataset(isic_config(tmp_path), 32, "Training", need_masks=True)
        assert [case.shape for case in dataset.cases()] == [(40, 48)] and dataset[0].mask.all()

    def test_data_folder_given_itself(self, isic_folder):
        dataset = open_dataset(isic_config(isic_folder / "Test" / TEST_DATA), 32, "Test", need_masks=True)
        assert len(dataset) == 2

    @pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
    def test_csv_of_the_original(self, isic_folder, encoding):
        folder = isic_folder / "Test"
        shutil.move(folder / TEST_DATA, folder / "图像")
        text = f",img,seg\n0,图像/ISIC_0000004.jpg,{TEST_TRUTH}/ISIC_0000004_Segmentation.png\n"
        (folder / "ISBI2016_ISIC_Part3B_Test_GroundTruth.csv").write_bytes(text.encode(encoding))
        dataset = open_dataset(isic_config(folder), 32, "Test", need_masks=True)
        assert [case.name for case in dataset.cases()] == ["ISIC_0000004"] and dataset[0].mask.any()

    def test_csv_of_other_columns_is_passed_over(self, isic_folder):
        table = isic_folder / "ISBI2016_ISIC_Part3B_Test_GroundTruth.csv"
        table.write_text("ISIC_0000003,benign\nISIC_0000004,malignant\n")
        assert len(open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)) == 2

    def test_csv_naming_a_missing_image(self, isic_folder):
        (isic_folder / "a_Test_GroundTruth.csv").write_text(",img,seg\n0,nowhere.jpg,nowhere.png\n")
        with pytest.raises(UserError, match="nowhere.jpg"):
            open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)

    def test_label_free(self, isic_folder, tmp_path):
        shutil.rmtree(isic_folder / "Test" / TEST_TRUTH)
        shutil.copytree(isic_folder / "Test" / TEST_DATA, tmp_path / "plain")
        for folder in (isic_folder, tmp_path / "plain"):
            dataset = open_dataset(isic_config(folder), 32, "Test", need_masks=False)
            assert len(dataset) == 2 and dataset[1].mask is None
            with pytest.raises(UserError, match="2 of 2 images without a mask"):
                open_dataset(isic_config(folder), 32, "Test", need_masks=True)

    def test_one_missing_mask_is_named(self, isic_folder):
        (isic_folder / "Test" / TEST_TRUTH / "ISIC_0000004_Segmentation.png").unlink()
        with pytest.raises(UserError, match=r"1 of 2 images without a mask \(ISIC_0000004\)"):
            open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)

    def test_mask_of_another_shape(self, isic_folder):
        save_png(isic_folder / "Test" / TEST_TRUTH / "ISIC_0000004_Segmentation.png", np.zeros((10, 20)))
        with pytest.raises(UserError, match="20 x 10 pixels.* 64 pixels"):
            open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)

    @pytest.mark.parametrize("folder, file", [
        (TEST_DATA, "ISIC_0000004.jpg"), (TEST_TRUTH, "ISIC_0000004_Segmentation.png")])
    def test_file_that_is_no_image(self, isic_folder, folder, file):
        (isic_folder / "Test" / folder / file).write_text("not a picture")
        with pytest.raises(UserError, match=file):
            open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)

    @pytest.mark.parametrize("folder, file", [
        (TEST_DATA, "ISIC_0000003.jpg"), (TEST_TRUTH, "ISIC_0000003_Segmentation.png")])
    def test_truncated_image(self, isic_folder, folder, file):
        path = isic_folder / "Test" / folder / file
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
        with pytest.raises(UserError, match=file):
            open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)[0]

    def test_mask_of_labels_zero_and_one(self, isic_folder):
        path = isic_folder / "Test" / TEST_TRUTH / "ISIC_0000003_Segmentation.png"
        save_png(path, np.asarray(Image.open(path)) // 255)
        with pytest.raises(UserError, match="at most 1; expected 0 and 255"):
            open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)[0]

    @pytest.mark.parametrize("mode", ["1", "RGB", "P", "I;16"])
    def test_masks_of_other_modes(self, tmp_path, mode):
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
        mask = isic.IsicDataset(tmp_path, 32, "Training")[0].mask[0]
        expected = np.asarray(Image.fromarray(values).resize((32, 32), Image.NEAREST)) > 0
        np.testing.assert_array_equal(mask, expected)

    def test_names_used_twice(self, isic_folder):
        shutil.copytree(isic_folder / "Test", isic_folder / "Copy")
        with pytest.raises(UserError, match="2 case names used more than once(.|\n)*ISIC_0000003: .*Copy"):
            open_dataset(isic_config(isic_folder), 32, "Test", need_masks=True)

    def test_truths_of_a_set_and_of_a_folder_of_masks(self, isic_folder, tmp_path):
        shutil.copytree(isic_folder / "Test" / TEST_TRUTH, tmp_path / "masks")
        for folder in (isic_folder, isic_folder / "Test" / TEST_TRUTH, tmp_path / "masks"):
            truths = list_truths(isic_config(folder))
            assert [truth.name for truth in truths] == ["ISIC_0000003", "ISIC_0000004"]
            assert truths[0].path.endswith("ISIC_0000003_Segmentation.png") and truths[0].slices is None

    def test_masks_alone_are_no_dataset(self, isic_folder):
        with pytest.raises(UserError, match="masks but no image"):
            open_dataset(isic_config(isic_folder / "Test" / TEST_TRUTH), 32, "Test", need_masks=False)

    def test_slices_of_images(self, isic_folder):
        with pytest.raises(UserError, match="--slices"):
            open_dataset(isic_config(isic_folder, slices="odd"), 32, "Test", need_masks=True)


class TestBrats:
    def test_cases_and_channels(self, brats_folder):
        dataset = open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)
        first, second = dataset.cases()
        assert (first.name, first.shape) == ("BraTS2021_00001", (20, 24, 10))
        assert (second.name, second.shape) == ("BraTS20_Training_002", (20, 24, 11))
        assert first.indices + second.indices == tuple(range(21)) and first.slices == tuple(range(10))
        example = dataset[first.indices[5]]
        assert example.image.shape == (4, 32, 32) and example.mask.shape == (1, 32, 32)
        assert example.noise_key == "BraTS2021_00001/5" and set(np.unique(example.mask)) == {0, 1}
        # the phantom's tumour is brightest in flair, the last channel, and dark in t1, the first
        inside = example.image[:, example.mask[0] > 0].mean(axis=1)
        assert list(np.argsort(inside)) == [0, 1, 2, 3]

    def test_label_free(self, brats_folder):
        for path in brats_folder.rglob("*_seg.nii.gz"):
            path.unlink()
        dataset = open_dataset(brats_config(brats_folder), 32, "Test", need_masks=False)
        assert len(dataset) == 21 and dataset[5].mask is None
        with pytest.raises(UserError, match="BraTS2021_00001.*seg missing"):
            open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)
        with pytest.raises(UserError, match="--slices tumour"):
            open_dataset(brats_config(brats_folder, slices="tumour"), 32, "Test", need_masks=False)

    def test_tolerant_names(self, brats_folder, tmp_path):
        source = brats_folder / "BraTS2021_00001"
        for path in source.iterdir():
            modality = path.name.split("_")[-1].split(".")[0]
            content = gzip.decompress(path.read_bytes())
            (tmp_path / "flat").mkdir(exist_ok=True)
            # flat and not compressed
            (tmp_path / "flat" / f"Case_A_{modality.upper()}.nii").write_bytes(content)
            (tmp_path / "flat" / "sub").mkdir(exist_ok=True)
            (tmp_path / "flat" / "sub" / f"{modality}.nii").write_bytes(content)  # named by modality alone
        dataset = open_dataset(brats_config(tmp_path / "flat"), 32, "Training", need_masks=True)
        assert [case.name for case in dataset.cases()] == ["Case_A", "sub"]
        np.testing.assert_array_equal(dataset[5].image, dataset[15].image)

    def test_missing_modality(self, brats_folder):
        (brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t2.nii.gz").rename(
            brats_folder / "BraTS2021_00001" / "W39_Segm.nii.gz")
        expected = "BraTS2021_00001.*only flair, seg, t1, t1ce .*W39_Segm.*; t2 missing"
        with pytest.raises(UserError, match=expected):
            open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)

    @pytest.mark.parametrize("part, change", list(itertools.product(("seg", "t1ce"), ("shape", "affine"))))
    def test_geometry_that_disagrees(self, brats_folder, part, change):
        path = brats_folder / "BraTS2021_00001" / f"BraTS2021_00001_{part}.nii.gz"
        image = nib.load(path)
        values, affine = np.asarray(image.dataobj), image.affine
        if change == "shape":
            values = values[:, :, :-1]
        else:
            affine = affine @ np.diag([1, 1, 2, 1])
        nib.save(nib.Nifti1Image(values, affine), path)
        with pytest.raises(UserError, match=f"_{part}.nii.gz: found {change}"):
            open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)

    @pytest.mark.parametrize("compressed", [True, False])
    @pytest.mark.parametrize("kept", [0.0, 0.004, 0.5, 0.999])
    def test_truncated_volume(self, brats_folder, compressed, kept):
        path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_flair.nii.gz"
        content = path.read_bytes()
        if not compressed:
            path.unlink()
            path, content = path.with_suffix(""), gzip.decompress(content)
        path.write_bytes(content[:int(kept * len(content))])
        with pytest.raises(UserError, match="_flair.nii.*no complete NIfTI"):
            open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)

    def test_corrupt_volume(self, brats_folder):
        path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle:middle + 64] = bytes(64)
        path.write_bytes(content)
        dataset = open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)
        with pytest.raises(UserError, match="_t1.nii.gz.*no complete NIfTI"):
            dataset[0]

    def test_text_named_as_a_volume(self, brats_folder):
        path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
        path.write_text("not a volume " * 100)
        with pytest.raises(UserError, match="_t1.nii.gz"):
            open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)

    def test_several_gzip_members_are_no_damage(self, brats_folder):
        path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
        content = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
        assert len(open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)) == 21

    def test_array_of_four_axes(self, brats_folder):
        path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), path)
        with pytest.raises(UserError, match=r"shape \(4, 4, 4, 2\)"):
            open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)

    def test_two_files_of_one_modality(self, brats_folder):
        path = brats_folder / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz"
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        with pytest.raises(UserError, match="BraTS2021_00001, t1: "):
            open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)

    def test_names_used_twice(self, brats_folder):
        shutil.copytree(brats_folder / "BraTS2021_00001", brats_folder / "copy")
        with pytest.raises(UserError, match="BraTS2021_00001: "):
            open_dataset(brats_config(brats_folder), 32, "Training", need_masks=True)

    def test_no_slice_left(self, brats_folder):
        for lister in (lambda config: open_dataset(config, 32, "Training", True), list_truths):
            with pytest.raises(UserError, match="--slices '0:1,tumour'"):
                lister(brats_config(brats_folder, slices="0:1,tumour"))

    def test_volume_is_read_once_and_the_cache_is_bounded(self, brats_folder, monkeypatch):
        reads = []
        original = volume_cases.read_volume
        monkeypatch.setattr(volume_cases, "read_volume", lambda path: reads.append(path) or original(path))
        dataset = brats.BratsDataset(brats_folder, 32)
        for index in range(len(dataset)):
            dataset[index]
        assert len(reads) == len(set(reads)) == 10
        small = brats.BratsDataset(brats_folder, 32, cache_bytes=1)  # keeps one volume at a time
        first, last = small[0].image, small[len(small) - 1]
        np.testing.assert_array_equal(first, small[0].image)
        assert last.case != small[0].case and len(reads) == 10 + 3 * 5

    def test_copy_for_another_process(self, brats_folder):
        dataset = brats.BratsDataset(brats_folder, 32, slices="tumour")
        content_before = len(pickle.dumps(dataset))
        expected = dataset[0]
        assert len(pickle.dumps(dataset)) == content_before  # no prepared volume travels
        copy = pickle.loads(pickle.dumps(dataset))
        np.testing.assert_array_equal(copy[0].image, expected.image)
        np.testing.assert_array_equal(copy[0].mask, expected.mask)

    def test_truths_need_no_images(self, brats_folder):
        for path in brats_folder.rglob("*_t*.nii.gz"):
            path.unlink()
        truths = list_truths(brats_config(brats_folder, slices="even"))
        assert [truth.slices for truth in truths] == [(0, 2, 4, 6, 8), (0, 2, 4, 6, 8, 10)]
        with pytest.raises(UserError, match="missing"):
            list_truths(brats_config(brats_folder, slices="brain"))


# Layout -> words of what it expects, function that writes an example with masks, examples, channels, labels.
EVERY_LAYOUT = {
    "ISIC": ("_GroundTruth", lambda folder: phantoms.write_isic_phantoms(folder, 2, 2, 40, 1), 2, 3, ("mask",)),
    "BRATS": ("flair.nii.gz", lambda folder: phantoms.write_brats_phantom(folder, "A", (16, 16, 8), 1), 8, 4,
              ("whole_tumour",)),
    "BRATS_SLICES": ("t1_123_w.nii.gz", lambda folder: phantoms.write_brats_slices_phantom(
        folder, "brats_train_001", (16, 16, 8), 1), 8, 4, ("whole_tumour",)),
    "REFUGE2": ("Disc_Cup_Masks", lambda folder: phantoms.write_refuge2_phantoms(folder, 2, 40, 1), 2, 3,
                ("disc", "cup")),
    "DDTI": ("masks/1.PNG", lambda folder: phantoms.write_ddti_phantoms(folder, 2, 40, 1), 2, 3, ("mask",)),
    "IMAGES": ("masks/NAME.png", lambda folder: phantoms.write_image_phantoms(folder, 2, 40, 1), 2, 3, ("mask",)),
    "VOLUMES": ("masks/NAME.nii.gz", lambda folder: phantoms.write_volume_phantoms(folder, 2, (16, 16, 8), 1), 16, 1,
                ("mask",)),
    "NNUNET": ("dataset.json", lambda folder: phantoms.write_nnunet_phantoms(folder, 2, 2, (16, 16, 8), 1), 16, 2,
               ("whole_tumor", "tumor_core", "enhancing")),
}


def test_every_layout_is_here():
    assert EVERY_LAYOUT.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("data_name", EVERY_LAYOUT)
class TestEveryLayout:
    """What holds for each of them, on its phantoms."""

    @pytest.fixture
    def config(self, data_name, tmp_path):
        EVERY_LAYOUT[data_name][1](tmp_path / "data")
        return DataConfig(data_name=data_name, data_dir=str(tmp_path / "data"))

    def test_examples(self, data_name, config):
        _, _, length, channels, labels = EVERY_LAYOUT[data_name]
        dataset = open_dataset(config, 32, "Training", need_masks=True)
        assert (len(dataset), dataset.in_channels, dataset.labels) == (length, channels, labels)
        examples = [dataset[index] for index in range(length)]
        for example in examples:
            assert example.image.shape == (channels, 32, 32) and example.mask.shape == (len(labels), 32, 32)
            assert example.image.dtype == example.mask.dtype == np.float32
            assert set(np.unique(example.mask)) <= {0, 1} and np.isfinite(example.image).all()
        assert all(np.any([example.mask[k].any() for example in examples]) for k in range(len(labels)))
        assert len({example.noise_key for example in examples}) == length
        cases = dataset.cases()
        assert [index for case in cases for index in case.indices] == list(range(length))
        assert [examples[case.indices[0]].case for case in cases] == [case.name for case in cases]

    def test_label_free_is_the_same_without_masks(self, data_name, config):
        with_masks, without = (open_dataset(config, 32, "Training", need_masks) for need_masks in (True, False))
        assert len(with_masks) == len(without) and without.labels == with_masks.labels
        assert (with_masks.normalisation, with_masks.in_channels) == (without.normalisation, without.in_channels)
        for index in range(len(without)):
            assert without[index].mask is None and without[index].noise_key == with_masks[index].noise_key
            np.testing.assert_array_equal(without[index].image, with_masks[index].image)

    def test_truths_are_the_examples_masks(self, data_name, config):
        """A truth, brought to the network's size as a mask is, gives the masks of the examples."""
        dataset = open_dataset(config, 32, "Training", need_masks=True)
        truths = list_truths(config, "Training")
        assert [truth.name for truth in truths] == [case.name for case in dataset.cases()]
        for truth, case in zip(truths, dataset.cases()):
            masks = read_truth_masks(truth)
            assert masks.dtype == bool and masks.shape == (len(dataset.labels), *case.shape)
            assert truth.slices == case.slices and truth.label_map.names == dataset.labels
            for index, z in zip(case.indices, case.slices or [None]):
                plane = masks if z is None else masks[..., z]
                np.testing.assert_array_equal(resize_nearest(plane, (32, 32)), dataset[index].mask)

    def test_copy_for_another_process(self, data_name, config):
        dataset = open_dataset(config, 32, "Training", need_masks=True)
        copy = pickle.loads(pickle.dumps(dataset))
        np.testing.assert_array_equal(copy[1].image, dataset[1].image)
        np.testing.assert_array_equal(copy[1].mask, dataset[1].mask)

    def test_name_in_small_letters_and_folder_with_a_slash(self, data_name, config):
        other = DataConfig(data_name=data_name.lower(), data_dir=config.data_dir + "/")
        assert len(open_dataset(other, 32, "Training", True)) == len(open_dataset(config, 32, "Training", True))

    def test_label_that_is_none_of_it(self, data_name, config):
        wrong = DataConfig(data_name=data_name, data_dir=config.data_dir, labels="liver")
        with pytest.raises(UserError, match="--labels.*liver"):
            open_dataset(wrong, 32, "Training", True)
        with pytest.raises(UserError, match="--labels.*liver"):
            list_truths(wrong, "Training")

    def test_phantoms_are_the_same_from_the_same_seed(self, data_name, config, tmp_path):
        EVERY_LAYOUT[data_name][1](tmp_path / "again")
        files = [path.relative_to(tmp_path / "data") for path in (tmp_path / "data").rglob("*") if path.is_file()]
        assert files
        for file in files:
            assert (tmp_path / "data" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


@pytest.mark.parametrize("data_name, layout", [(name, row[0]) for name, row in EVERY_LAYOUT.items()])
class TestFolders:
    def config(self, data_name, folder):
        return DataConfig(data_name=data_name, data_dir=str(folder))

    def test_missing(self, data_name, layout, tmp_path):
        with pytest.raises(UserError, match=f"nowhere.*no such folder.*{layout}"):
            open_dataset(self.config(data_name, tmp_path / "nowhere"), 32, "Training", True)

    def test_not_given(self, data_name, layout):
        with pytest.raises(UserError, match=f"--data_dir ''.*{layout}"):
            open_dataset(self.config(data_name, ""), 32, "Training", True)

    def test_empty(self, data_name, layout, tmp_path):
        with pytest.raises(UserError, match=f"an empty folder.*{layout}"):
            open_dataset(self.config(data_name, tmp_path), 32, "Training", True)

    def test_without_data(self, data_name, layout, tmp_path):
        (tmp_path / "notes.txt").write_text("words")
        (tmp_path / ".hidden_flair.nii.gz").write_text("words")
        (tmp_path / "._hidden.jpg").write_text("words")
        with pytest.raises(UserError, match=f"found no .*{layout}"):
            open_dataset(self.config(data_name, tmp_path), 32, "Training", True)

    def test_file_instead(self, data_name, layout, tmp_path):
        (tmp_path / "file").write_text("words")
        with pytest.raises(UserError, match=f"found a file.*{layout}"):
            open_dataset(self.config(data_name, tmp_path / "file"), 32, "Training", True)

    def test_index_outside(self, data_name, layout, tmp_path):
        EVERY_LAYOUT[data_name][1](tmp_path)
        dataset = open_dataset(self.config(data_name, tmp_path), 32, "Training", True)
        for index in (-1, len(dataset)):
            with pytest.raises(IndexError):
                dataset[index]

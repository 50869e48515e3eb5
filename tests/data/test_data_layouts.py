"""Test the rules for every layout: its examples, its truths, and the folders that it refuses."""

import pickle

import numpy as np
import pytest

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import LAYOUTS, list_truths, open_dataset, phantoms
from guided_diffusion_core.data.formats.transforms import resize_nearest
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError

# layout -> words from its expected files, function that writes a data set, numbers of examples and channels, labels
EVERY_LAYOUT = {
    "ISIC": ("_GroundTruth", lambda folder: phantoms.write_isic_phantoms(folder, 2, 2, 40, 1), 2, 3, ("mask",)),
    "BRATS": (
        "flair.nii.gz",
        lambda folder: phantoms.write_brats_phantom(folder, "A", (16, 16, 8), 1),
        8,
        4,
        ("whole_tumour",),
    ),
    "BRATS_SLICES": (
        "t1_123_w.nii.gz",
        lambda folder: phantoms.write_brats_slices_phantom(folder, "brats_train_001", (16, 16, 8), 1),
        8,
        4,
        ("whole_tumour",),
    ),
    "REFUGE2": (
        "Disc_Cup_Masks",
        lambda folder: phantoms.write_refuge2_phantoms(folder, 2, 40, 1),
        2,
        3,
        ("disc", "cup"),
    ),
    "DDTI": ("masks/1.PNG", lambda folder: phantoms.write_ddti_phantoms(folder, 2, 40, 1), 2, 3, ("mask",)),
    "IMAGES": ("masks/NAME.png", lambda folder: phantoms.write_image_phantoms(folder, 2, 40, 1), 2, 3, ("mask",)),
    "VOLUMES": (
        "masks/NAME.nii.gz",
        lambda folder: phantoms.write_volume_phantoms(folder, 2, (16, 16, 8), 1),
        16,
        1,
        ("mask",),
    ),
    "NNUNET": (
        "dataset.json",
        lambda folder: phantoms.write_nnunet_phantoms(folder, 2, 2, (16, 16, 8), 1),
        16,
        2,
        ("whole_tumor", "tumor_core", "enhancing"),
    ),
}


def test_every_layout_is_here():
    assert EVERY_LAYOUT.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("data_name", EVERY_LAYOUT)
class TestEveryLayout:
    """Tests on the phantoms of each layout."""

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
        """Compare the masks of the examples with the truths, resized like a mask."""
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

"""Test nnU-Net's layout with pictures: channels, labels, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths, open_dataset, phantoms
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError

BOX = np.zeros((40, 48), np.uint8)
BOX[10:20, 5:30] = 255


def opened(name, folder, need_masks=True, split="Training", **settings):
    return open_dataset(DataConfig(data_name=name, data_dir=str(folder), **settings), 32, split, need_masks)


def truths(name, folder, split="Training", **settings):
    return list_truths(DataConfig(data_name=name, data_dir=str(folder), **settings), split)


def save(path, values, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = values if isinstance(values, Image.Image) else Image.fromarray(np.asarray(values))
    picture.save(path, **settings)
    return path


def write_nnunet_picture(folder, channels, image, mask=BOX // 255, **description):
    save(folder / "imagesTr" / "a_0000.png", image)
    save(folder / "labelsTr" / "a.png", mask)
    tree = {
        "channel_names": dict(enumerate(channels)),
        "labels": {"background": 0, "box": 1},
        "file_ending": ".png",
        **description,
    }
    (folder / "dataset.json").write_text(json.dumps(tree))
    return folder


class TestNnunetPictures:
    def test_channels_in_files_of_their_own(self, tmp_path):
        phantoms.write_nnunet_phantoms(tmp_path, 2, 1, (32, 32, 8), 1, ".png")
        dataset = opened("NNUNET", tmp_path)
        assert dataset.in_channels == 2 and dataset[0].mask.shape == (3, 32, 32)
        for channel in range(2):
            values = np.asarray(Image.open(tmp_path / "imagesTr" / f"head_000_000{channel}.png"), float)
            np.testing.assert_allclose(dataset[0].image[channel], (values - values.mean()) / values.std(), atol=1e-5)
        stored = np.asarray(Image.open(tmp_path / "labelsTs" / "head_002.png"))
        expected = [stored > 0, np.isin(stored, (1, 3)), stored == 3]
        np.testing.assert_array_equal(read_truth_masks(truths("NNUNET", tmp_path, "Test")[0]), expected)

    def test_a_colour_picture_is_three_channels(self, tmp_path):
        colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        write_nnunet_picture(tmp_path, ("rgb_to_0_1",) * 3, colours, np.zeros((32, 32), np.uint8))
        dataset = opened("NNUNET", tmp_path)
        np.testing.assert_allclose(dataset[0].image, colours.transpose(2, 0, 1) / 255, atol=1e-6)
        assert dataset.labels == ("box",)

    def test_a_grey_picture_for_three_channels(self, tmp_path):
        write_nnunet_picture(tmp_path, "RGB", BOX)
        with pytest.raises(UserError, match="a_0000.png: found 1 channels in one file; expected 3"):
            opened("NNUNET", tmp_path)[0]

    def test_slices(self, tmp_path):
        with pytest.raises(UserError, match="--slices"):
            opened("NNUNET", write_nnunet_picture(tmp_path, "R", BOX), slices="odd")

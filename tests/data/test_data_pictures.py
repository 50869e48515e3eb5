"""Test the picture layouts: pairing, modes and depths of files, labels, and every input that they refuse."""

import io
import re
import shutil

import numpy as np
import pytest
import tifffile
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from guided_diffusion_core.config import DataConfig, resolve
from guided_diffusion_core.data import list_truths, open_dataset, phantoms
from guided_diffusion_core.data.formats import images
from guided_diffusion_core.data.formats.masks import label_values
from guided_diffusion_core.data.formats.rasters import read_header, read_raster
from guided_diffusion_core.data.pairs import pair_by_stem
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.training import fit_to_data

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


def plain(folder, image=BOX, mask=BOX, name="a.png"):
    save(folder / "images" / name, image)
    save(folder / "masks" / "a.png", mask)
    return folder


def truth_of(folder):
    return read_truth_masks(truths("IMAGES", folder)[0])[0]


names = st.lists(st.text("aB0_-.", min_size=1, max_size=6), max_size=8, unique_by=str.lower)
endings = st.sampled_from(["", "_mask", "-mask", "_Segmentation", "_SEG", "_label", "_gt"])


class TestPairing:
    @given(names, names, endings, st.randoms())
    def test_every_mask_goes_to_the_image_of_its_name(self, paired, unpaired, ending, random):
        taken = {name.lower() for name in paired}
        unpaired = [name for name in unpaired if name.lower() not in taken]
        items = [("img/" + name, name) for name in paired]
        masks = [(name.swapcase() + ending, "mask/" + name) for name in paired]
        masks += [(f"only~{name}" + ending, "mask/" + name) for name in unpaired]
        listed_images = [(name, path) for path, name in items]
        random.shuffle(listed_images)
        random.shuffle(masks)
        # the full name of a mask must not be the name of another image
        full = {mask.lower(): path for mask, path in masks}
        assume(all(full.get(name.lower(), "mask/" + name) == "mask/" + name for name in paired))
        pairs = pair_by_stem(listed_images, masks, "here")
        found = {pair.name: pair.mask for pair in pairs if pair.image}
        assert found == {name: "mask/" + name for name in paired}
        assert sorted(pair.mask for pair in pairs if pair.image is None) == sorted("mask/" + name for name in unpaired)
        assert [pair.name for pair in pairs] == sorted(pair.name for pair in pairs)

    def test_the_full_name_counts_before_the_ending(self):
        pairs = pair_by_stem([("a", "1"), ("a_mask", "2")], [("a_mask", "3")], "here")
        assert [(pair.image, pair.mask) for pair in pairs] == [("1", None), ("2", "3")]

    def test_two_masks_of_one_image(self):
        with pytest.raises(UserError, match="a: m/a.png, m/A_mask.png"):
            pair_by_stem([("a", "i/a.png")], [("a", "m/a.png"), ("A_mask", "m/A_mask.png")], "here")

    def test_two_images_of_one_name(self):
        with pytest.raises(UserError, match="a: i/a.png, i/A.jpg"):
            pair_by_stem([("a", "i/a.png"), ("A", "i/A.jpg")], [], "here")


class TestPlainFolder:
    def test_pictures_and_masks(self, tmp_path):
        phantoms.write_image_phantoms(tmp_path, 3, 48, 1)
        dataset = opened("IMAGES", tmp_path)
        assert [case.name for case in dataset.cases()] == ["case000", "case001", "case002"]
        assert (dataset.in_channels, dataset.labels, dataset.normalisation) == (3, ("mask",), "RGB / 255")
        mask = np.asarray(Image.open(tmp_path / "masks" / "case001.png").resize((32, 32), Image.NEAREST)) > 0
        picture = np.asarray(Image.open(tmp_path / "images" / "case001.png").resize((32, 32), Image.BILINEAR)) / 255
        np.testing.assert_array_equal(dataset[1].mask[0], mask)
        np.testing.assert_allclose(dataset[1].image, picture.transpose(2, 0, 1), atol=1e-6)
        native = np.asarray(Image.open(tmp_path / "masks" / "case001.png")) > 0
        np.testing.assert_array_equal(read_truth_masks(truths("IMAGES", tmp_path)[1]), native[None])

    def test_all_that_is_unpaired_in_one_error(self, tmp_path):
        phantoms.write_image_phantoms(tmp_path, 4, 32, 1)
        for path in ("masks/case001.png", "masks/case003.png", "images/case002.png"):
            (tmp_path / path).unlink()
        with pytest.raises(
            UserError,
            match=r"2 of 3 images without a mask \(case001, case003\) and "
            r"1 masks without an image \(.*case002.png\)",
        ):
            opened("IMAGES", tmp_path)
        assert len(opened("IMAGES", tmp_path, need_masks=False)) == 3

    def test_splits_by_the_names_of_folders(self, tmp_path):
        for split, count in (("train", 3), ("Testing", 2), ("val", 1)):
            phantoms.write_image_phantoms(tmp_path / split, count, 32, 1)
        assert len(opened("IMAGES", tmp_path)) == 3
        assert len(opened("IMAGES", tmp_path, split="Test")) == len(truths("IMAGES", tmp_path, "Test")) == 2
        assert len(opened("IMAGES", tmp_path / "val", split="Test")) == 1
        shutil.rmtree(tmp_path / "Testing")
        with pytest.raises(UserError, match="only train, val; expected a folder with 'test' in its name"):
            opened("IMAGES", tmp_path, split="Test")

    def test_one_folder_with_masks_named_so(self, tmp_path):
        save(tmp_path / "a.png", BOX)
        save(tmp_path / "a_Segmentation.tif", BOX)
        save(tmp_path / "b.jpg", BOX)
        assert [case.name for case in opened("IMAGES", tmp_path, need_masks=False).cases()] == ["a", "b"]
        with pytest.raises(UserError, match=r"1 of 2 images without a mask \(b\)"):
            opened("IMAGES", tmp_path)

    @pytest.mark.parametrize("folder", ["masks", "images"])
    def test_one_of_the_two_folders_given_itself(self, tmp_path, folder):
        plain(tmp_path)
        if folder == "masks":
            assert [truth.name for truth in truths("IMAGES", tmp_path / "masks")] == ["a"]
            with pytest.raises(UserError, match="masks but no image"):
                opened("IMAGES", tmp_path / "masks", need_masks=False)
        else:
            assert len(opened("IMAGES", tmp_path / "images", need_masks=False)) == 1
            with pytest.raises(UserError, match="1 of 1 images without a mask"):
                truths("IMAGES", tmp_path / "images")

    def test_labels_by_name(self, tmp_path):
        phantoms.write_image_phantoms(tmp_path, 2, 48, 1, labelled=True)
        stored = np.asarray(Image.open(tmp_path / "masks" / "case000.png"))
        dataset = opened("IMAGES", tmp_path)
        assert dataset.labels == ("lesion", "core") and dataset[0].mask.shape == (2, 32, 32)
        assert set(np.unique(stored)) == {0, 1, 2} and (dataset[0].mask[1] <= dataset[0].mask[0]).all()
        for spec, expected in (("", [stored > 0, stored == 2]), ("core", [stored == 2])):
            np.testing.assert_array_equal(read_truth_masks(truths("IMAGES", tmp_path, labels=spec)[0]), expected)
        grown = opened("IMAGES", tmp_path, upstream_compat=True)[0].mask
        assert (grown >= dataset[0].mask).all() and grown.sum() > dataset[0].mask.sum()

    def test_label_free_needs_no_values(self, tmp_path):
        plain(tmp_path)
        assert opened("IMAGES", tmp_path, need_masks=False, labels="disc,cup").labels == ("disc", "cup")
        with pytest.raises(UserError, match="--labels.*labels.json"):
            opened("IMAGES", tmp_path, labels="disc,cup")

    @pytest.mark.parametrize("content", ["[1, 2]", "{", '{"a": "b"}', '{"A b": 1}', '{"a": []}', '{"a": true}', "{}"])
    def test_labels_file_that_is_none(self, tmp_path, content):
        plain(tmp_path)
        (tmp_path / "labels.json").write_text(content)
        with pytest.raises(UserError, match="labels.json: found something else"):
            opened("IMAGES", tmp_path)

    def test_labels_are_not_merged_but_soft_edges_are_a_mask(self, tmp_path):
        labels = BOX.copy()
        labels[25:30] = 128
        with pytest.raises(UserError, match="a.png: found mask values 0, 128, 255; .*labels.json"):
            opened("IMAGES", plain(tmp_path, mask=labels))[0]
        soft = np.asarray(Image.fromarray(BOX).resize((16, 13)).resize((48, 40), Image.BICUBIC))
        np.testing.assert_array_equal(truth_of(plain(tmp_path, mask=soft)), soft >= 128)

    def test_a_mask_of_zero_and_one(self, tmp_path):
        assert opened("IMAGES", plain(tmp_path, mask=BOX // 255))[0].mask.sum() > 0
        save(tmp_path / "masks" / "a.png", BOX // 255 * 2)
        with pytest.raises(UserError, match="at most 2; expected 0 and 255"):
            opened("IMAGES", tmp_path)[0]

    def test_slices(self, tmp_path):
        with pytest.raises(UserError, match="--slices"):
            opened("IMAGES", plain(tmp_path), slices="odd")


class TestModes:
    """The network input does not depend on how a picture is stored."""

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
    def test_eight_bits_and_less(self, tmp_path, mode):
        image = Image.fromarray(BOX).convert(mode)
        found = opened("IMAGES", plain(tmp_path, image=image), need_masks=False)[0].image
        expected = np.asarray(Image.fromarray(BOX).resize((32, 32), Image.BILINEAR)) / 255
        np.testing.assert_allclose(found, np.stack([expected] * 3), atol=1e-6)

    @pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
    def test_sixteen_bits_are_a_share_of_65535(self, tmp_path, compression):
        ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
        save(tmp_path / "a.tif", Image.fromarray(ramp), compression=compression)
        np.testing.assert_allclose(images.read_picture(tmp_path / "a.tif", 32), np.stack([ramp / 65535] * 3), atol=1e-7)
        assert read_header(tmp_path / "a.tif").shape == (32, 32)

    @pytest.mark.parametrize("planar", ["contig", "separate"])
    def test_sixteen_bits_in_colour_keep_their_depth(self, tmp_path, planar):
        colours = np.random.default_rng(0).integers(0, 65536, (32, 32, 3)).astype(np.uint16)
        stored = colours if planar == "contig" else colours.transpose(2, 0, 1)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
        found = images.read_picture(tmp_path / "a.tif", 32)
        np.testing.assert_allclose(found, colours.transpose(2, 0, 1) / 65535, atol=1e-7)
        assert read_header(tmp_path / "a.tif").shape == (32, 32)

    def test_floating_point(self, tmp_path):
        values = np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)
        save(tmp_path / "a.tif", values)
        np.testing.assert_allclose(images.read_picture(tmp_path / "a.tif", 32)[0], values)
        for broken in (values * 2, values - 1, values * np.nan):
            save(tmp_path / "a.tif", broken)
            with pytest.raises(UserError, match="a.tif: found float32 values"):
                images.read_picture(tmp_path / "a.tif", 32)

    def test_signed_values(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", np.full((8, 8), -5, np.int16))
        with pytest.raises(UserError, match="values from -5 to -5; expected 8 or 16 bits"):
            images.read_picture(tmp_path / "a.tif", 32)

    def test_several_pages(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
        with pytest.raises(UserError, match="3 pages or frames; expected one picture"):
            images.read_picture(tmp_path / "a.tif", 32)

    @pytest.mark.parametrize("kept", [0, 10, 0.5])
    @pytest.mark.parametrize("reader", [lambda path: images.read_picture(path, 32), read_raster])
    def test_broken_tiff(self, tmp_path, reader, kept):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.ones((32, 32, 3), np.uint16), photometric="rgb")
        content = buffer.getvalue()
        (tmp_path / "a.tif").write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
        with pytest.raises(UserError, match="a.tif: found no complete image"):
            reader(tmp_path / "a.tif")


class TestLabelPictures:
    """The stored values of a label picture in every mode."""

    VALUES = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)

    def stored(self, path, picture, **settings):
        return label_values(read_raster(save(path, picture, **settings)), path)

    def test_grey_of_any_depth(self, tmp_path):
        for dtype in (np.uint8, np.uint16, np.int32, np.float32):
            values = self.stored(tmp_path / "a.tif", self.VALUES.astype(dtype))
            np.testing.assert_array_equal(values, self.VALUES)
        np.testing.assert_array_equal(self.stored(tmp_path / "a.png", self.VALUES == 1), self.VALUES == 1)

    def test_indices_of_a_palette_and_not_its_colours(self, tmp_path):
        picture = Image.fromarray(self.VALUES, "P")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        np.testing.assert_array_equal(self.stored(tmp_path / "a.png", picture), self.VALUES)

    def test_grey_kept_as_colour(self, tmp_path):
        for mode in ("RGB", "RGBA", "LA"):
            picture = Image.fromarray(self.VALUES).convert(mode)
            np.testing.assert_array_equal(self.stored(tmp_path / "a.png", picture), self.VALUES)

    def test_colours(self, tmp_path):
        with pytest.raises(UserError, match="a mask in colour"):
            self.stored(tmp_path / "a.png", np.stack([self.VALUES, self.VALUES, 0 * self.VALUES], axis=-1))

    def test_transparent_in_places(self, tmp_path):
        with pytest.raises(UserError, match="transparent in places"):
            self.stored(tmp_path / "a.png", np.stack([self.VALUES] * 4, axis=-1))


class TestRefuge:
    def test_labels_in_every_mode_of_a_mask(self, tmp_path):
        phantoms.write_refuge2_phantoms(tmp_path, 2, 48, 1)
        path = tmp_path / "Disc_Cup_Masks" / "T0001.png"
        codes = np.asarray(Image.open(path))
        assert Image.open(path).mode == "RGBA" and set(np.unique(codes[..., 0])) == {0, 128, 255}
        expected = np.stack([codes[..., 0] < 255, codes[..., 0] == 0])
        np.testing.assert_array_equal(read_truth_masks(truths("REFUGE2", tmp_path)[0]), expected)
        path.unlink()
        save(path.with_suffix(".bmp"), codes[..., 0])
        np.testing.assert_array_equal(read_truth_masks(truths("REFUGE2", tmp_path)[0]), expected)

    def test_folders_of_the_challenge(self, tmp_path):
        """Read the training set of REFUGE: pictures and masks in Glaucoma and Non-Glaucoma, and illustrations."""
        phantoms.write_refuge2_phantoms(tmp_path / "raw", 1, 48, 1)
        picture = tmp_path / "raw/Disc_Cup_Fovea_Illustration/T0001.jpg"
        mask = tmp_path / "raw/Disc_Cup_Masks/T0001.png"
        for kind, name in (("Glaucoma", "g0001"), ("Non-Glaucoma", "n0001")):
            for source, place in (
                (picture, f"Training400/{kind}/{name}.jpg"),
                (mask, f"Annotation-Training400/Disc_Cup_Masks/{kind}/{name}.png"),
                (mask, f"Annotation-Training400/Disc_Cup_Fovea_Illustration/{name}.png"),
            ):
                (tmp_path / "set" / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, tmp_path / "set" / place)
        dataset = opened("REFUGE2", tmp_path / "set")
        assert [case.name for case in dataset.cases()] == ["g0001", "n0001"] and dataset.labels == ("disc", "cup")
        np.testing.assert_array_equal(dataset[0].image, opened("REFUGE2", tmp_path / "raw")[0].image)
        masks = tmp_path / "set/Annotation-Training400/Disc_Cup_Masks"
        assert [truth.name for truth in truths("REFUGE2", masks)] == ["g0001", "n0001"]


@pytest.mark.parametrize("spec, recorded", [("", "disc,cup"), ("cup", "cup")])
def test_a_training_records_the_names_of_its_labels(tmp_path, spec, recorded):
    """Record the names, so that a plain folder without labels can be sampled."""
    phantoms.write_refuge2_phantoms(tmp_path, 1, 48, 1)
    trained = fit_to_data(resolve({"labels": spec, "batch_size": 2}), opened("REFUGE2", tmp_path, labels=spec), False)
    assert trained.data.labels == recorded and trained.model.mask_channels == len(recorded.split(","))
    plain(tmp_path / "new")
    fresh = opened("IMAGES", tmp_path / "new" / "images", need_masks=False, labels=trained.data.labels)
    assert fresh.labels == tuple(recorded.split(","))


def test_a_training_of_one_label_records_no_name(tmp_path):
    """Record no name, so that the network fits every layout with the same number of channels."""
    dataset = opened("IMAGES", plain(tmp_path))
    assert fit_to_data(resolve({"batch_size": 2}), dataset, False).data.labels == ""


class TestDdti:
    def test_names_in_capitals_and_numbers(self, tmp_path):
        phantoms.write_ddti_phantoms(tmp_path, 2, 48, 1)
        dataset = opened("DDTI", tmp_path)
        mask = np.asarray(Image.open(tmp_path / "masks" / "1.PNG"))
        assert [case.name for case in dataset.cases()] == ["1", "2"] and set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(read_truth_masks(truths("DDTI", tmp_path)[0])[0], mask == 255)


class TestIsicYears:
    @pytest.mark.parametrize("year", phantoms.pictures.ISIC_FOLDERS)
    def test_folders(self, tmp_path, year):
        phantoms.write_isic_phantoms(tmp_path, 2, 1, 40, 1, year)
        assert len(opened("ISIC", tmp_path)) == 2 and len(opened("ISIC", tmp_path, split="Test")) == 1
        assert re.fullmatch("ISIC_0000002_Segmentation.png", truths("ISIC", tmp_path, "Test")[0].path.split("/")[-1])

    def test_another_task_is_no_mask(self, tmp_path):
        phantoms.write_isic_phantoms(tmp_path, 1, 0, 40, 1, 2018)
        (tmp_path / "Train" / "ISIC2018_Task1_Training_GroundTruth").rename(
            tmp_path / "Train" / "ISIC2018_Task2_Training_GroundTruth"
        )
        with pytest.raises(UserError, match="1 of 1 images without a mask"):
            opened("ISIC", tmp_path)

    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    @pytest.mark.parametrize("header", [("img", "seg"), ("Image", "Mask")])
    def test_csv(self, tmp_path, delimiter, header):
        folder = tmp_path / "Test"
        phantoms.write_isic_phantoms(tmp_path, 0, 2, 40, 1)
        row = (
            "ISBI2016_ISIC_Part1_Test_Data\\ISIC_0000001.jpg",
            "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000001_Segmentation.png",
        )
        lines = [delimiter.join(("", *header)), delimiter.join(("0", *row))]
        (folder / "ISBI2016_ISIC_Part1_Test_GroundTruth.csv").write_text("\n".join(lines))
        assert [case.name for case in opened("ISIC", folder, split="Test").cases()] == ["ISIC_0000001"]

"""Test the one reader of picture files: pages, EXIF orientations, depths; in training and in the check alike."""

import io
import itertools
import json
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support import picture_kinds as kinds
from support.agreement import agree
from support.picture_kinds import MASK, SHAPE, content, tiff, write

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths, open_dataset, phantoms
from guided_diffusion_core.data.formats.images import read_picture
from guided_diffusion_core.data.formats.rasters import read_header, read_raster
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError

COLOURS = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
GREY = COLOURS[..., 0]
SMALL = Image.fromarray(COLOURS[::4, ::4])
MASK_PICTURE = kinds.by_mask(255)


def opened(folder, layout="IMAGES"):
    return open_dataset(DataConfig(layout, str(folder)), 32, "Training", need_masks=True)


def pair(folder, image, mask=MASK_PICTURE, ending="png"):
    write(folder / "images" / f"a.{ending}", image)
    write(folder / "masks" / "a.png", mask)
    return folder


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def late_exif(orientation):
    """Return a PNG file whose EXIF stands behind the pixels, where the standard allows it."""
    chunk = b"eXIf" + exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    plain = content(COLOURS, "PNG")
    return plain[:-12] + whole + plain[-12:]  # before the last chunk, IEND


def tiff_of_16_bits(orientation):
    """Return a TIFF file that tifffile reads."""
    tags = [(274, "H", 1, orientation, True)]
    return tiff(COLOURS.astype(np.uint16) * 257, photometric="rgb", extratags=tags)


# how a picture states its orientation: name -> (ending, function of the orientation that returns the file's content)
TURNED = {
    "JPEG": ("jpg", lambda turn: content(COLOURS, "JPEG", quality=100, subsampling=0, exif=exif(turn))),
    "PNG": ("png", lambda turn: content(COLOURS, "PNG", exif=exif(turn))),
    "PNG, behind the pixels": ("png", late_exif),
    "PNG of 16 bits": ("png", lambda turn: content(GREY.astype(np.uint16) * 257, "PNG", exif=exif(turn))),
    "TIFF": ("tif", lambda turn: content(COLOURS, "TIFF", exif=exif(turn))),
    "compressed TIFF": ("tif", lambda turn: content(COLOURS, "TIFF", exif=exif(turn), compression="tiff_lzw")),
    "TIFF of 16 bits": ("tif", tiff_of_16_bits),
}


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", TURNED)
    def test_as_pillow_turns_it(self, tmp_path, kind, orientation):
        ending, make = TURNED[kind]
        path = write(tmp_path / f"a.{ending}", make(orientation))
        colours = GREY[..., None].repeat(3, axis=2) if kind == "PNG of 16 bits" else COLOURS
        in_png = Image.open(io.BytesIO(content(colours, "PNG", exif=exif(orientation))))
        upright = ImageOps.exif_transpose(in_png)
        header = read_header(path)
        assert (header.shape, header.orientation) == (upright.size[::-1], orientation)
        assert read_raster(path).shape == header.shape
        expected = np.asarray(upright.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(read_picture(path, 32), expected, atol=0.03)  # JPEG rounds, 16 bits do not

    @pytest.mark.parametrize("orientation", range(2, 9))
    def test_masks_drawn_on_what_viewers_show(self, tmp_path, orientation):
        """An image that was stored turned, and its mask without EXIF, give the upright pair."""
        upright = Image.fromarray(COLOURS)
        back = {6: 8, 8: 6}.get(orientation, orientation)  # all others undo themselves
        turned = Image.open(io.BytesIO(content(upright, "PNG", exif=exif(back))))
        stored = content(ImageOps.exif_transpose(turned), "PNG", exif=exif(orientation))
        pair(tmp_path, stored)
        assert agree(tmp_path, "IMAGES") == []
        dataset = opened(tmp_path)
        expected = opened(pair(tmp_path / "upright", upright))
        np.testing.assert_array_equal(dataset[0].image, expected[0].image)
        np.testing.assert_array_equal(dataset[0].mask, expected[0].mask)
        assert dataset.cases()[0].shape == SHAPE
        assert dataset.remarks == ("EXIF orientation applied to 1 of 1 pictures (a)",) and expected.remarks == ()

    def test_masks_with_an_orientation(self, tmp_path):
        mask = content(MASK_PICTURE[::-1, ::-1], "PNG", exif=exif(3))
        pair(tmp_path, COLOURS, mask)
        [truth] = list_truths(DataConfig("IMAGES", str(tmp_path)), "Training")
        np.testing.assert_array_equal(read_truth_masks(truth)[0], MASK)
        assert agree(tmp_path, "IMAGES") == []

    @pytest.mark.parametrize("orientation", [5, 6, 8])
    @pytest.mark.parametrize("on_mask", [False, True])
    def test_a_mask_of_another_shape(self, tmp_path, orientation, on_mask):
        image = COLOURS if on_mask else content(COLOURS, "PNG", exif=exif(orientation))
        mask = content(MASK_PICTURE, "PNG", exif=exif(orientation)) if on_mask else MASK_PICTURE
        [reason] = agree(pair(tmp_path, image, mask), "IMAGES")
        assert f"EXIF orientation {orientation}" in reason and "masks/a.png: found" in reason

    def test_damaged_exif_counts_as_none(self, tmp_path):
        path = write(tmp_path / "a.jpg", content(COLOURS, "JPEG", exif=b"Exif\0\0words"))
        assert read_header(path).orientation == 1 and read_raster(path).shape == SHAPE


def thumbnail_tiff(first):
    """Return a TIFF file of a picture and a smaller copy of it, the copy as the first or the last page."""
    buffer = io.BytesIO()
    pages = [(COLOURS, 0), (np.asarray(SMALL), 1)]
    with tifffile.TiffWriter(buffer) as file:
        for pixels, kind in reversed(pages) if first else pages:
            file.write(pixels, photometric="rgb", subfiletype=kind)
    return buffer.getvalue()


def camera_jpeg(kind):
    """Return a JPEG file of two frames; kind: what the second one is, a number of the format MPO."""
    picture = content(COLOURS, "MPO", save_all=True, append_images=[SMALL], quality=100, subsampling=0)
    directory = picture.index(b"II*\0")
    # 0x030000 is the kind of the first frame; its two lower bytes follow the number of entries, which is 3 too
    first_entry = picture.index(struct.pack("<L", 0x030000), directory + 10)
    second_entry = first_entry + 16
    return picture[:second_entry] + struct.pack("<L", kind) + picture[second_entry + 4 :]


ONE_PICTURE = {
    "camera's preview": ("jpg", camera_jpeg(0x010001)),
    "camera's second frame of no kind": ("jpg", camera_jpeg(0)),
    "thumbnail behind": ("tif", thumbnail_tiff(False)),
    "thumbnail before": ("tif", thumbnail_tiff(True)),
    "one frame of a GIF": ("png", content(COLOURS, "GIF")),
}
SEVERAL_PICTURES = {
    "stack": ("tif", tiff(np.stack([COLOURS] * 3), photometric="rgb"), "3 pages"),
    "stack of 16 bits": ("tif", tiff(np.stack([COLOURS.astype(np.uint16)] * 2), photometric="rgb"), "2 pages"),
    "stereo": ("jpg", camera_jpeg(0x020002), "2 pages"),
    "animation": ("png", content(COLOURS, "PNG", save_all=True, append_images=[Image.fromarray(GREY)]), "2 pages"),
    "GIF": ("png", content(GREY, "GIF", save_all=True, append_images=[Image.fromarray(GREY.T)]), "2 pages"),
}


class TestPages:
    @pytest.mark.parametrize("kind", ONE_PICTURE)
    def test_previews_do_not_count(self, tmp_path, kind):
        ending, picture = ONE_PICTURE[kind]
        pair(tmp_path, picture, ending=ending)
        assert agree(tmp_path, "IMAGES") == []
        tolerance = 0.2 if ending == "png" else 0.03  # the palette of a GIF
        np.testing.assert_allclose(read_picture(tmp_path / f"images/a.{ending}", 32), expected_input(), atol=tolerance)

    @pytest.mark.parametrize("layout", ["IMAGES", "DDTI"])
    @pytest.mark.parametrize("kind", SEVERAL_PICTURES)
    def test_several_are_refused_in_the_same_words(self, tmp_path, kind, layout):
        ending, picture, words = SEVERAL_PICTURES[kind]
        [reason] = agree(pair(tmp_path, picture, ending=ending), layout)
        assert f"found {words} or frames; expected one picture" in reason
        for reader in (read_header, read_raster):
            with pytest.raises(UserError) as refused:
                reader(tmp_path / f"images/a.{ending}")
            assert reason.endswith(str(refused.value).split(": ", 1)[1])


def expected_input():
    return np.asarray(Image.fromarray(COLOURS).resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255


SIXTEEN_BITS = {
    "grey PNG": ("png", GREY.astype(np.uint16) * 257),
    "grey TIFF": ("tif", GREY.astype(np.uint16) * 257),
    "colour TIFF": ("tif", tiff(COLOURS.astype(np.uint16) * 257, photometric="rgb")),
}
BEYOND_THE_RULE = {
    "floats above 1": ("tif", GREY.astype(np.float32), "float32 values from 0 to 255"),
    "floats below 0": ("tif", GREY / np.float32(255) - 1, "float32 values from -1"),
    "NaN": ("tif", GREY * np.float32(np.nan), "float32 values from nan"),
    "32 bits": ("tif", GREY.astype(np.int32) * 1000, "int32 values from 0"),
    "signed": ("tif", tiff(GREY.astype(np.int16) - 100), "int32 values from -100"),
    "text": ("png", b"words", "no complete image"),
}


class TestDepths:
    # the challenge of ISIC has no TIFF files
    @pytest.mark.parametrize(
        "layout, kind", [*itertools.product(["IMAGES", "DDTI"], SIXTEEN_BITS), ("ISIC", "grey PNG")]
    )
    def test_sixteen_bits(self, tmp_path, kind, layout):
        ending, picture = SIXTEEN_BITS[kind]
        if layout == "ISIC":
            write(tmp_path / "X_Data" / f"a.{ending}", picture)
            write(tmp_path / "X_GroundTruth" / "a_segmentation.png", MASK_PICTURE)
        else:
            pair(tmp_path, picture, ending=ending)
        assert agree(tmp_path, layout) == []
        expected = expected_input()
        if "grey" in kind:
            expected = expected[:1].repeat(3, axis=0)
        np.testing.assert_allclose(opened(tmp_path, layout)[0].image, expected, atol=2e-2)

    @pytest.mark.parametrize("kind", BEYOND_THE_RULE)
    def test_other_values_are_refused_in_the_same_words(self, tmp_path, kind):
        ending, picture, words = BEYOND_THE_RULE[kind]
        [reason] = agree(pair(tmp_path, picture, ending=ending), "IMAGES")
        assert f"a.{ending}: found {words}" in reason


modes = st.sampled_from(["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F", "F/255"])


@settings(max_examples=100, deadline=None, database=None)
@given(mode=modes, layout=st.sampled_from(["IMAGES", "NNUNET"]), orientation=st.integers(1, 8), seed=st.integers(0, 99))
def test_the_check_and_training_agree_on_any_picture(tmp_path_factory, mode, layout, orientation, seed):
    folder = tmp_path_factory.mktemp("any")
    picture = kinds.any_picture(mode, np.random.default_rng(seed).integers(0, 256, 6), seed)
    ending = ".png" if mode in ("LA", "RGBA") else ".tif"
    stored = content(picture, ending[1:].replace("tif", "TIFF").upper(), exif=exif(orientation))
    if layout == "NNUNET":
        nnunet(folder, ["US"], {0: stored}, ending)
    else:
        pair(folder, stored, ending=ending[1:])
    reasons = agree(folder, layout)
    turned = [reason for reason in reasons if "EXIF" in reason]
    assert bool(turned) == (orientation >= 5)


def nnunet(folder, channels, files, ending=".png"):
    """Write one case; files: dict of channel number -> picture."""
    for number, picture in files.items():
        write(folder / "imagesTr" / f"a_{number:04d}{ending}", picture)
    write(folder / "labelsTr" / f"a{ending}", MASK.astype(np.uint8))
    tree = {
        "channel_names": dict(enumerate(channels)),
        "labels": {"background": 0, "box": 1},
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(tree))
    return folder


CHANNELS = {
    "colour for one": (["US"], {0: COLOURS}, "found 3 channels in one file; expected 1"),
    "palette for one": (["US"], {0: kinds.palette(GREY, kinds.VOC)}, "found 3 channels in one file; expected 1"),
    "grey for three": (["R", "G", "B"], {0: GREY}, "found 1 channels in one file; expected 3"),
    "colour for one of two": (["A", "B"], {0: COLOURS, 1: GREY}, "a_0000.png: found 3 channels"),
    "colour for the second": (["A", "B"], {0: GREY, 1: COLOURS}, "a_0001.png: found 3 channels"),
    "other size": (["A", "B"], {0: GREY, 1: GREY[:20]}, "a_0001.png: found 44 x 20 pixels"),
    "channel missing": (["A", "B"], {0: GREY}, "a_0001"),
}


class TestNnunetPictures:
    @pytest.mark.parametrize("kind", CHANNELS)
    def test_refused_in_the_same_words(self, tmp_path, kind):
        channels, files, words = CHANNELS[kind]
        reasons = agree(nnunet(tmp_path, channels, files), "NNUNET")
        assert any(words in reason for reason in reasons)

    @pytest.mark.parametrize("channel", ["US", "CT", "rescale_to_0_1", "noNorm"])
    def test_values_that_are_not_finite(self, tmp_path, channel):
        values = GREY.astype(np.float32)
        values[3, 4] = np.inf
        [reason] = agree(nnunet(tmp_path, [channel], {0: values}, ".tif"), "NNUNET")
        assert "1 values that are not finite" in reason

    def test_grey_and_colour_that_fit(self, tmp_path):
        assert agree(nnunet(tmp_path / "grey", ["A", "B"], {0: GREY, 1: GREY[::-1]}), "NNUNET") == []
        assert agree(nnunet(tmp_path / "colour", ["R", "G", "B"], {0: COLOURS}), "NNUNET") == []
        assert agree(nnunet(tmp_path / "alpha", ["A"], {0: kinds.with_alpha(GREY, MASK_PICTURE)}), "NNUNET") == []


def test_training_says_which_pictures_were_turned(tmp_path, command):
    folder = phantoms.write_image_phantoms(tmp_path, 2, 48, 1)
    path = tmp_path / "images" / "case001.png"
    Image.open(path).save(path, exif=exif(3))
    flags = (
        "--data_name",
        "IMAGES",
        "--data_dir",
        folder,
        "--preset",
        "fast",
        "--image_size",
        "32",
        "--batch_size",
        "2",
    )
    code, _, errors = command("segmentation_train", *flags, "--out_dir", tmp_path / "run", "--dry_run", "True")
    assert code == 0 and errors.count("EXIF orientation applied to 1 of 2 pictures (case001)") == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_picture_whose_zero_is_white_is_read_as_shown(tmp_path, dtype):
    values = (GREY.astype(dtype) * (np.iinfo(dtype).max // 255)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", np.iinfo(dtype).max - values, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "b.tif", values, photometric="minisblack")
    shown, plain = (read_picture(tmp_path / name, 32) for name in ("a.tif", "b.tif"))
    np.testing.assert_array_equal(shown, plain)

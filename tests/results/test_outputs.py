"""Test the files of a case: lossless, of the native size and grid, complete or absent."""

import gzip
import os

import matplotlib
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from skimage.transform import resize

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.data.dataset import Case
from guided_diffusion_core.data.phantoms import write_brats_phantom
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.results import outputs
from guided_diffusion_core.results.display import COLOURS, as_picture
from guided_diffusion_core.system import files
from medsegdiff.demo.overview import OverviewRow, write_overview

IMAGE = Case("ISIC_0000001", (4,), (45, 71))


@pytest.fixture
def pictures():
    """Return probability and uncertainty of one example, (1, 32, 32) each."""
    values = np.random.default_rng(0).random((2, 1, 32, 32)).astype(np.float32)
    return values[0], values[1] / 2


@pytest.fixture(scope="module")
def volume_case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volume")
    write_brats_phantom(folder, "A", (20, 24, 10), 0)
    config = DataConfig(data_name="BRATS", data_dir=str(folder), slices="3:8:2")
    dataset = open_dataset(config, 32, "Test", need_masks=True)
    return dataset.cases()[0]


def test_image_files(tmp_path, pictures):
    paths = outputs.CaseWriter(tmp_path).write(IMAGE, *pictures, threshold=0.5)
    assert sorted(os.listdir(tmp_path)) == [
        "ISIC_0000001_mask.png",
        "ISIC_0000001_probability.tiff",
        "ISIC_0000001_uncertainty.tiff",
    ]
    probability, uncertainty = (
        resize(values[0], (45, 71), order=1, mode="edge", anti_aliasing=False) for values in pictures
    )
    written = outputs.read_output(paths["probability"])
    np.testing.assert_allclose(written, probability, atol=1e-6)
    np.testing.assert_allclose(outputs.read_output(paths["uncertainty"]), uncertainty, atol=1e-6)
    mask = np.asarray(Image.open(paths["mask"]))
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(mask == 255, written >= np.float32(0.5))
    np.testing.assert_array_equal(outputs.read_output(paths["mask"]), mask == 255)


def test_float_files_are_lossless(tmp_path):
    values = np.random.default_rng(0).random((1, 32, 32)).astype(np.float32)
    paths = outputs.CaseWriter(tmp_path).write(Case("a", (0,), (32, 32)), values, values, threshold=0.5)
    for kind in ("probability", "uncertainty"):
        np.testing.assert_array_equal(outputs.read_output(paths[kind]), values[0])
        assert Image.open(paths[kind]).mode == "F"


def test_volume_files(tmp_path, volume_case):
    assert volume_case.slices == (3, 5, 7)
    probability = np.random.default_rng(0).random((3, 32, 32)).astype(np.float32)
    paths = outputs.CaseWriter(tmp_path).write(volume_case, probability, probability / 2, threshold=0.4)
    assert sorted(os.listdir(tmp_path)) == ["A_mask.nii.gz", "A_probability.nii.gz", "A_uncertainty.nii.gz"]
    expected = np.zeros((20, 24, 10))
    for z, values in zip((3, 5, 7), probability):
        expected[:, :, z] = np.asarray(Image.fromarray(values).resize((24, 20), Image.BILINEAR))
    for kind, stored, values in (
        ("probability", np.float32, expected),
        ("uncertainty", np.float32, expected / 2),
        ("mask", np.uint8, expected >= 0.4),
    ):
        image = nib.load(paths[kind])
        assert image.get_data_dtype() == stored
        np.testing.assert_array_equal(image.affine, volume_case.affine)
        for name in ("qform_code", "sform_code", "xyzt_units", "pixdim"):
            np.testing.assert_array_equal(image.header[name], volume_case.header[name])
        np.testing.assert_allclose(image.get_fdata(), values, atol=1e-6)


def test_scaled_source_does_not_scale_the_output(tmp_path, volume_case):
    header = volume_case.header.copy()
    header["scl_slope"] = 3
    header["scl_inter"] = 5
    header["cal_max"] = 900
    header["vox_offset"] = 2880
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"of the source"))
    case = Case("A", (0,), volume_case.shape, (4,), volume_case.affine, header)
    ones = np.ones((1, 32, 32))
    paths = outputs.CaseWriter(tmp_path).write(case, ones, ones, threshold=0.5)
    mask = nib.load(paths["mask"])
    assert mask.get_fdata().max() == 1 and mask.get_fdata().sum() == 20 * 24 and mask.header["cal_max"] == 0
    with gzip.open(paths["mask"]) as file:
        raw = nib.Nifti1Header.from_fileobj(file)
    assert raw["vox_offset"] == 352 and not raw.extensions


def test_slices_that_were_not_sampled_stay_empty(tmp_path, volume_case):
    nothing = np.zeros((3, 32, 32))
    paths = outputs.CaseWriter(tmp_path).write(volume_case, nothing, nothing, threshold=0.0)
    assert outputs.read_output(paths["mask"]).any(axis=(0, 1)).nonzero()[0].tolist() == [3, 5, 7]


def test_same_input_same_bytes(tmp_path, volume_case):
    values = np.random.default_rng(0).random((3, 32, 32))
    for folder in ("a", "b"):
        outputs.CaseWriter(tmp_path / folder).write(volume_case, values, values, threshold=0.5)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_number_of_pictures_must_fit(tmp_path, volume_case):
    with pytest.raises(ValueError, match="2 pictures for the 3 examples"):
        two = np.zeros((2, 32, 32))
        outputs.CaseWriter(tmp_path).write(volume_case, two, two, threshold=0.5)
    assert not list(tmp_path.iterdir())


LABELS = ("disc", "cup")


def test_files_of_several_labels(tmp_path):
    """Each label has one file of each kind; all labels share one overlay."""
    probability = np.random.default_rng(0).random((1, 2, 32, 32)).astype(np.float32)
    picture = np.full((1, 32, 32, 3), 128, np.uint8)
    writer = outputs.CaseWriter(tmp_path, LABELS)
    case = Case("c", (0,), (32, 32))
    assert not writer.is_complete(case)
    paths = writer.write(case, probability, probability / 2, 0.5, picture)
    assert sorted(os.listdir(tmp_path)) == [
        "c_cup_mask.png",
        "c_cup_probability.tiff",
        "c_cup_uncertainty.tiff",
        "c_disc_mask.png",
        "c_disc_probability.tiff",
        "c_disc_uncertainty.tiff",
        "c_overlay.png",
        "c_uncertainty_map.png",
    ]
    for k, label in enumerate(LABELS):
        assert paths[f"{label}_mask"] == outputs.find_output(tmp_path, "c", "mask", label)
        for kind, values in (
            ("probability", probability),
            ("uncertainty", probability / 2),
            ("mask", probability >= 0.5),
        ):
            found = outputs.read_output(outputs.find_output(tmp_path, "c", kind, label))
            np.testing.assert_array_equal(found, values[0, k])
    assert writer.is_complete(case)
    os.remove(paths["disc_mask"])
    assert not writer.is_complete(case)


def test_volumes_of_several_labels(tmp_path, volume_case):
    probability = np.random.default_rng(0).random((3, 2, 32, 32)).astype(np.float32)
    paths = outputs.CaseWriter(tmp_path, LABELS).write(volume_case, probability, probability, threshold=0.5)
    for k, label in enumerate(LABELS):
        alone = outputs.CaseWriter(tmp_path / label).write(
            volume_case, probability[:, k], probability[:, k], threshold=0.5
        )
        for kind in ("probability", "uncertainty", "mask"):
            np.testing.assert_array_equal(nib.load(paths[f"{label}_{kind}"]).dataobj, nib.load(alone[kind]).dataobj)


class TestOverlay:
    def test_outlines_lie_inside_their_mask_on_the_picture(self, tmp_path):
        probability = np.zeros((1, 2, 32, 32), np.float32)
        probability[0, 0, 4:20, 4:20] = probability[0, 1, 4:8, 4:8] = 1
        picture = np.random.default_rng(0).integers(0, 60, (1, 32, 32, 3)).astype(np.uint8)
        case = Case("c", (0,), (32, 32))
        path = outputs.CaseWriter(tmp_path, LABELS).write(case, probability, probability, 0.5, picture)["overlay"]
        found = np.asarray(Image.open(path))
        outline = {k: np.zeros((32, 32), bool) for k in range(2)}
        for k, end in enumerate((20, 8)):
            outline[k][4:end, 4:end] = True
            outline[k][5 : end - 1, 5 : end - 1] = False
        expected = picture[0].copy()
        for k in range(2):
            expected[outline[k]] = COLOURS[k]
        np.testing.assert_array_equal(found, expected)

    def test_of_a_volume_shows_the_slice_with_the_largest_mask(self, tmp_path, volume_case):
        probability = np.zeros((3, 1, 32, 32))
        pictures = np.zeros((3, 32, 32, 3), np.uint8)
        probability[1, 0, :16, :16] = 1
        probability[2, 0, :8] = 1
        pictures[1, :, :, 2] = 200
        path = outputs.CaseWriter(tmp_path).write(volume_case, probability, probability, 0.5, pictures)["overlay"]
        found = np.asarray(Image.open(path))
        assert path.endswith("A_overlay.png") and found.shape == (24, 20, 3), "x to the right, y up"
        assert found[0, -1].tolist() == [0, 0, 200] and found[-1, 0].tolist() == list(COLOURS[0])

    def test_the_map_of_the_uncertainty_has_one_scale(self, tmp_path):
        """Colour the most uncertain label of each pixel: black is 0, the brightest 0.5, in every case."""
        colours = matplotlib.colormaps["magma"]
        uncertainty = np.zeros((1, 2, 32, 32), np.float32)
        uncertainty[0, 0, 4:8] = 0.5
        uncertainty[0, 1, 6:20] = 0.25
        picture = np.zeros((1, 32, 32, 3), np.uint8)
        for name, factor in (("certain", 0.01), ("uncertain", 1.0)):
            case = Case(name, (0,), (32, 32))
            writer = outputs.CaseWriter(tmp_path, ("disc", "cup"))
            path = writer.write(case, uncertainty, factor * uncertainty, 0.5, picture)["uncertainty_map"]
            found = np.asarray(Image.open(path))
            assert path.endswith(f"{name}_uncertainty_map.png")
            for row, value in ((0, 0.0), (5, 0.5), (7, 0.5), (15, 0.25)):
                expected = np.round(255 * np.array(colours(2 * factor * value)[:3]))
                np.testing.assert_array_equal(found[row], np.tile(expected, (32, 1)))

    def test_the_map_of_a_volume_lies_on_its_overlay(self, tmp_path, volume_case):
        probability = np.zeros((3, 1, 32, 32))
        probability[1, 0, :16, :16] = 1
        paths = outputs.CaseWriter(tmp_path).write(
            volume_case, probability, probability / 2, 0.5, np.zeros((3, 32, 32, 3), np.uint8)
        )
        heat = np.asarray(Image.open(paths["uncertainty_map"]))
        overlay = np.asarray(Image.open(paths["overlay"]))
        assert heat.shape == overlay.shape == (24, 20, 3)
        assert heat[-1, 0].tolist() == [252, 253, 191] and heat[0, -1].tolist() == [0, 0, 4]
        assert overlay[-1, 0].any() and not overlay[0, -1].any()

    def test_of_an_empty_volume(self, tmp_path, volume_case):
        nothing = np.zeros((3, 1, 32, 32))
        pictures = np.zeros((3, 32, 32, 3), np.uint8)
        path = outputs.CaseWriter(tmp_path).write(volume_case, nothing, nothing, 0.5, pictures)["overlay"]
        assert not np.asarray(Image.open(path)).any()

    def test_network_inputs_as_pictures(self):
        colour = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
        np.testing.assert_array_equal(as_picture(colour), (colour * 255).round().transpose(1, 2, 0))
        modalities = np.random.default_rng(0).standard_normal((4, 8, 8))
        shown = as_picture(modalities)
        assert shown.shape == (8, 8, 3) and (shown.min(), shown.max()) == (0, 255)
        order = np.argsort(modalities[-1].ravel())
        assert (np.diff(shown[..., 0].ravel()[order].astype(int)) >= 0).all()
        assert not as_picture(np.zeros((1, 8, 8))).any()

    @pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (400.0, 1000.0), (0.001, -5.0)])
    def test_three_channels_that_are_no_colours(self, scale, shift):
        """Each channel keeps its order and uses the whole range, instead of being clipped to black and white."""
        random = np.random.default_rng(0)
        channels = random.standard_normal((3, 16, 16)) * np.array([1, 3, 10])[:, None, None] * scale + shift
        shown = as_picture(channels)
        assert shown.shape == (16, 16, 3)
        for channel in range(3):
            levels = shown[..., channel].ravel()[np.argsort(channels[channel].ravel())].astype(int)
            assert (levels[0], levels[-1]) == (0, 255) and (np.diff(levels) >= 0).all()
            assert len(np.unique(levels)) > 100

    def test_a_constant_channel_beside_others(self):
        channels = np.stack([np.full((8, 8), 7.0), np.arange(64.0).reshape(8, 8), np.zeros((8, 8))])
        shown = as_picture(channels)
        assert not shown[..., 0].any() and not shown[..., 2].any() and shown[..., 1].max() == 255

    def test_colours_that_were_rounded_are_not_scaled(self):
        colours = np.full((3, 4, 4), 0.5)
        colours[0, 0, 0] = 1 + 1e-5
        assert as_picture(colours)[0, 0].tolist() == [255, 128, 128]


def test_find_output(tmp_path, pictures, volume_case):
    assert outputs.find_output(tmp_path, IMAGE.name, "mask") is None
    paths = outputs.CaseWriter(tmp_path).write(IMAGE, *pictures, threshold=0.5)
    assert outputs.find_output(tmp_path, IMAGE.name, "mask") == paths["mask"]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's word on the cut TIFF
@pytest.mark.parametrize("kind", ["mask", "probability"])
def test_broken_output(tmp_path, pictures, kind):
    path = outputs.CaseWriter(tmp_path).write(IMAGE, *pictures, threshold=0.5)[kind]
    with open(path, "rb+") as file:
        file.truncate(os.path.getsize(path) // 2)
    with pytest.raises(UserError, match=f"_{kind}.*no complete image"):
        outputs.read_output(path)


class TestUnwritable:
    """Root may write everywhere, so the tests use a folder below a file and a disk that fails."""

    def test_folder_below_a_file(self, tmp_path):
        (tmp_path / "file").write_text("words")
        for folder in (tmp_path / "file" / "out", tmp_path / "file"):
            with pytest.raises(UserError, match="--out_dir .*cannot be written"):
                outputs.CaseWriter(folder)
        assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "words"

    def test_folder_that_takes_no_files(self):
        with pytest.raises(UserError, match="--out_dir /proc/self.*cannot be written"):
            outputs.CaseWriter("/proc/self")

    def test_folder_that_vanishes(self, tmp_path, pictures):
        writer = outputs.CaseWriter(tmp_path / "out")
        (tmp_path / "out").rmdir()
        with pytest.raises(UserError, match="ISIC_0000001_probability.tiff.*cannot be written"):
            writer.write(IMAGE, *pictures, threshold=0.5)
        assert not os.listdir(tmp_path)

    def test_trial_leaves_nothing(self, tmp_path):
        folder = files.make_writable_folder(tmp_path / "new" / "out", "--out_dir")
        assert os.path.isdir(folder) and not os.listdir(folder)

    def test_interrupted_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "summary.json"
        files.write_atomic(path, b"old")

        def fail(*paths):
            raise OSError("no space left on device")

        monkeypatch.setattr(files.os, "replace", fail)
        with pytest.raises(UserError, match="summary.json.*no space left"):
            files.write_atomic(path, b"new")
        assert os.listdir(tmp_path) == ["summary.json"] and path.read_bytes() == b"old"

    def test_ctrl_c_leaves_no_temporary_file(self, tmp_path, monkeypatch):
        def interrupt(*paths):
            raise KeyboardInterrupt

        monkeypatch.setattr(files.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            files.write_atomic(tmp_path / "summary.json", b"new")
        assert not os.listdir(tmp_path)


@pytest.mark.parametrize("channels", [3, 4])
def test_overview(tmp_path, channels):
    generator = np.random.default_rng(0)
    rows = [
        OverviewRow(
            f"case {i}",
            generator.random((channels, 24, 32)),
            truth,
            {"PyTorch": generator.random((24, 32)) > 0.5, "Jittor": generator.random((24, 32)) > 0.5},
            generator.random((24, 32)) / 2,
        )
        for i, truth in enumerate((np.ones((24, 32), bool), None))
    ]
    write_overview(tmp_path / "overview.png", rows)
    assert os.listdir(tmp_path) == ["overview.png"]
    picture = np.asarray(Image.open(tmp_path / "overview.png").convert("RGB"))
    assert min(picture.shape[:2]) > 300 and picture.std() > 20
    write_overview(tmp_path / "one.png", rows[:1])
    assert Image.open(tmp_path / "one.png").height < len(picture)

"""Test the volume layouts: file names, joined slices, nnU-Net's descriptions, and every input that they refuse."""

import json
import pickle

import nibabel as nib
import numpy as np
import pytest

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import layout_name, list_truths, open_dataset, phantoms
from guided_diffusion_core.data.formats.transforms import channel_rule
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.results.outputs import CaseWriter

SHAPE = (20, 24, 10)
REGIONS = "whole_tumour,tumour_core,enhancing"
BRATS_NAMES = {2020: "BraTS20_Training_001", 2021: "BraTS2021_00000", 2023: "BraTS-GLI-00000-000"}


def config(name, folder, **settings):
    return DataConfig(data_name=name, data_dir=str(folder), **settings)


def opened(name, folder, need_masks=True, split="Training", **settings):
    return open_dataset(config(name, folder, **settings), 32, split, need_masks)


def truth(name, folder, split="Training", **settings):
    return read_truth_masks(list_truths(config(name, folder, **settings), split)[0])


def change(path, values=None, affine=None):
    image = nib.load(path)
    values = np.asarray(image.dataobj) if values is None else values
    nib.save(nib.Nifti1Image(values, image.affine if affine is None else affine), path)


class TestBratsNames:
    @pytest.mark.parametrize("year", BRATS_NAMES)
    def test_regions_of_every_year(self, tmp_path, year):
        """Read the same images and regions from the same head in the files of every year."""
        phantoms.write_brats_phantom(tmp_path / "a", BRATS_NAMES[year], SHAPE, 1, year)
        phantoms.write_brats_phantom(tmp_path / "b", "reference", SHAPE, 1)
        dataset, reference = (opened("BRATS", tmp_path / folder, labels=REGIONS) for folder in "ab")
        assert dataset.labels == tuple(REGIONS.split(",")) and dataset.cases()[0].name == BRATS_NAMES[year]
        for index in range(SHAPE[2]):
            np.testing.assert_array_equal(dataset[index].image, reference[index].image)
            np.testing.assert_array_equal(dataset[index].mask, reference[index].mask)
        labels = phantoms.volumes.head_phantom(SHAPE, 1)["seg"]
        expected = [labels > 0, np.isin(labels, (1, 4)), labels == 4]
        np.testing.assert_array_equal(truth("BRATS", tmp_path / "a", labels=REGIONS), expected)
        np.testing.assert_array_equal(truth("BRATS", tmp_path / "a"), expected[:1])

    def test_labels_under_a_name_of_their_own(self, tmp_path):
        """Accept W39_1998.09.19_Segm.nii as the labels of BraTS20_Training_355, which has no seg file."""
        folder = tmp_path / "BraTS20_Training_355"
        phantoms.write_brats_phantom(tmp_path, folder.name, SHAPE, 1, 2020)
        expected = truth("BRATS", tmp_path)
        (folder / "BraTS20_Training_355_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
        np.testing.assert_array_equal(truth("BRATS", tmp_path), expected)
        (folder / "W40_Segm.nii").write_bytes((folder / "W39_1998.09.19_Segm.nii").read_bytes())
        with pytest.raises(UserError, match="W39_1998.09.19_Segm.nii, W40_Segm.nii of unknown meaning.*seg missing"):
            opened("BRATS", tmp_path)

    def test_one_modality_under_two_names(self, tmp_path):
        folder = tmp_path / "BraTS2021_00000"
        phantoms.write_brats_phantom(tmp_path, folder.name, SHAPE, 1)
        (folder / "BraTS2021_00000_t1n.nii.gz").write_bytes((folder / "BraTS2021_00000_t1.nii.gz").read_bytes())
        with pytest.raises(UserError, match="BraTS2021_00000, t1: .*_t1.nii.gz, .*_t1n.nii.gz"):
            opened("BRATS", tmp_path)

    def test_upstream_rule_grows_every_region(self, tmp_path):
        phantoms.write_brats_phantom(tmp_path, "A", SHAPE, 1)
        nearest, grown = (
            np.stack([data[z].mask for z in range(SHAPE[2])]).sum(axis=(0, 2, 3))
            for data in (opened("BRATS", tmp_path, labels=REGIONS, upstream_compat=compat) for compat in (False, True))
        )
        assert (grown > nearest).all() and (np.diff(nearest) < 0).all()


class TestBratsSlices:
    @pytest.fixture
    def folder(self, tmp_path):
        for seed, case in enumerate(("brats_train_001", "brats_train_002")):
            phantoms.write_brats_slices_phantom(tmp_path / "slices", case, SHAPE, seed, first=3)
        return tmp_path / "slices"

    @pytest.mark.parametrize("name", ["BRATS", "brats_slices"])
    def test_slices_of_a_case_make_its_volume(self, folder, name):
        dataset = opened(name, folder, labels=REGIONS)
        assert layout_name(name, str(folder)) == "BRATS_SLICES"
        assert [(case.name, case.shape, case.slices) for case in dataset.cases()] == [
            (name, SHAPE, tuple(range(3, 10))) for name in ("brats_train_001", "brats_train_002")
        ]
        volumes = phantoms.volumes.head_phantom(SHAPE, 1)
        expected = [volumes["seg"] > 0, np.isin(volumes["seg"], (1, 4)), volumes["seg"] == 4]
        found = read_truth_masks(list_truths(config(name, folder, labels=REGIONS))[1])
        np.testing.assert_array_equal(found[..., 3:], np.array(expected)[..., 3:])
        assert not found[..., :3].any() and found.shape == (3, *SHAPE)

    def test_as_the_volume_that_they_are_of(self, tmp_path):
        phantoms.write_brats_slices_phantom(tmp_path / "all", "A", SHAPE, 1)
        phantoms.write_brats_phantom(tmp_path / "whole", "A", SHAPE, 1)
        sliced = opened("BRATS", tmp_path / "all", slices="odd")
        whole = opened("BRATS", tmp_path / "whole", slices="odd")
        assert len(sliced) == len(whole) == 5
        for index in range(5):
            np.testing.assert_array_equal(sliced[index].image, whole[index].image)
            np.testing.assert_array_equal(sliced[index].mask, whole[index].mask)
        copy = pickle.loads(pickle.dumps(sliced))
        np.testing.assert_array_equal(copy[2].image, sliced[2].image)

    def test_results_lie_on_the_grid_of_the_slices(self, folder, tmp_path):
        case = opened("BRATS", folder).cases()[0]
        values = np.full((7, 32, 32), 1, np.float32)
        written = nib.load(CaseWriter(tmp_path / "out").write(case, values, values, 0.5)["mask"])
        source = nib.load(folder / "brats_train_001_slice0003" / "brats_train_001_seg_003_w.nii.gz")
        np.testing.assert_array_equal(written.affine, source.affine)
        assert written.shape == SHAPE and written.header.get_zooms()[:2] == source.header.get_zooms()
        assert not np.asarray(written.dataobj)[..., :3].any() and np.asarray(written.dataobj)[..., 3:].all()

    def test_slices_with_places_of_their_own(self, folder):
        """Find the volume's origin if each slice has its own, as nibabel's slicer writes; the first file is slice 3."""
        step = np.array([[0.0, 0, 2.5, 7], [0, 1, 0, 8], [-1, 0, 0, 9], [0, 0, 0, 1]])
        for path in folder.rglob("*.nii.gz"):
            z = int(path.name.split("_")[-2])
            moved = step.copy()
            moved[:, 3] += z * step[:, 2]
            change(path, affine=moved)
        np.testing.assert_allclose(opened("BRATS", folder).cases()[0].affine, step, atol=1e-4)

    @pytest.mark.parametrize("part", ["t1ce", "seg"])
    def test_a_slice_of_another_grid(self, folder, part):
        path = folder / "brats_train_001_slice0005" / f"brats_train_001_{part}_005_w.nii.gz"
        change(path, affine=np.diag([1.0, 2, 1, 1]))
        with pytest.raises(UserError, match="_w.nii.gz: found another grid"):
            opened("BRATS", folder)

    def test_a_missing_slice(self, folder):
        (folder / "brats_train_001_slice0005" / "brats_train_001_t2_005_w.nii.gz").unlink()
        with pytest.raises(UserError, match="case brats_train_001.*found no t2 of slice 5"):
            opened("BRATS", folder)

    def test_a_slice_that_is_a_volume(self, folder):
        change(folder / "brats_train_001_slice0005" / "brats_train_001_t1_005_w.nii.gz", np.zeros((4, 4, 4), np.int16))
        with pytest.raises(
            UserError, match=r"t1_005_w.nii.gz: found an array of shape \(4, 4, 4\); expected one slice"
        ):
            opened("BRATS", folder)

    def test_a_slice_twice(self, folder):
        source = folder / "brats_train_001_slice0005" / "brats_train_001_t1_005_w.nii.gz"
        (folder / "brats_train_001_t1_5.nii.gz").write_bytes(source.read_bytes())
        with pytest.raises(UserError, match="brats_train_001, t1, slice 5: "):
            opened("BRATS", folder)


class TestPlainVolumes:
    @pytest.fixture
    def folder(self, tmp_path):
        return tmp_path / phantoms.write_volume_phantoms(tmp_path / "data", 2, SHAPE, 1)

    @pytest.mark.parametrize("name", ["VOLUMES", "my_data"])
    def test_images_and_masks(self, folder, name):
        dataset = opened(name, folder)
        assert (dataset.in_channels, dataset.labels, len(dataset)) == (1, ("mask",), 20)
        values = nib.load(folder / "images" / "case001.nii.gz").get_fdata()
        source = open_dataset(config(name, folder), 96, "Training", True)[14]
        scaled = (values[:, :, 4] - values.mean()) / values.std()
        assert source.noise_key == "case001/4" and source.image.min() >= scaled.min() - 1e-5
        labels = nib.load(folder / "masks" / "case001.nii.gz").get_fdata()
        np.testing.assert_array_equal(read_truth_masks(list_truths(config(name, folder))[1]), labels[None] > 0)

    def test_normalisation_at_the_own_size(self, tmp_path):
        phantoms.write_volume_phantoms(tmp_path, 1, (32, 32, 8), 1)
        values = nib.load(tmp_path / "images" / "case000.nii.gz").get_fdata()
        expected = (values - values.mean()) / values.std()
        dataset = opened("VOLUMES", tmp_path)
        found = np.stack([dataset[z].image[0] for z in range(8)], axis=-1)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    @pytest.mark.parametrize("axes", ["PIR", "LPS", "SAR"])
    def test_any_orientation_and_depth(self, folder, axes, tmp_path):
        """Write results on the grid of the source for any order and direction of its axes."""
        for path in folder.rglob("case000*"):
            image = nib.load(path)
            target = nib.orientations.axcodes2ornt(axes)
            turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), target)
            nib.save(image.as_reoriented(turn), path)
        dataset = opened("VOLUMES", folder)
        source = nib.load(folder / "masks" / "case000.nii.gz")
        case = dataset.cases()[0]
        values = np.stack([dataset[index].mask[0] for index in case.indices])
        written = nib.load(CaseWriter(tmp_path).write(case, values, values, 0.5)["mask"])
        assert written.shape == source.shape and nib.aff2axcodes(written.affine) == tuple(axes)
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-6)

    def test_labels_by_name(self, folder):
        labels = phantoms.volumes.head_phantom(SHAPE, (1, 0))["seg"]
        change(folder / "masks" / "case000.nii.gz", labels)
        (folder / "labels.json").write_text(json.dumps({"tumour": [1, 2, 4], "core": [1, 4]}))
        np.testing.assert_array_equal(truth("VOLUMES", folder), [labels > 0, np.isin(labels, (1, 4))])
        (folder / "labels.json").write_text(json.dumps({"tumour": [1, 2]}))
        with pytest.raises(UserError, match="case000.nii.gz: found label values 4; expected only the values 0, 1, 2"):
            opened("VOLUMES", folder)[0]

    def test_all_that_is_unpaired_in_one_error(self, folder):
        (folder / "masks" / "case000.nii.gz").rename(folder / "masks" / "case009_mask.nii.gz")
        message = r"1 of 2 images without a mask \(case000\) and 1 masks without an image \(.*case009"
        with pytest.raises(UserError, match=message):
            opened("VOLUMES", folder)
        assert len(opened("VOLUMES", folder, need_masks=False)) == 20

    def test_masks_alone(self, folder):
        assert truth("VOLUMES", folder / "masks").shape == (1, *SHAPE)
        with pytest.raises(UserError, match="masks but no image"):
            opened("VOLUMES", folder / "masks")

    def test_all_channels_in_one_file(self, folder):
        change(folder / "images" / "case000.nii.gz", np.zeros((8, 8, 8, 4), np.int16))
        message = r"shape \(8, 8, 8, 4\); expected a volume with three axes. Write each channel"
        with pytest.raises(UserError, match=message):
            opened("VOLUMES", folder)

    def test_values_that_are_not_finite(self, folder):
        values = nib.load(folder / "images" / "case000.nii.gz").get_fdata()
        values[0, 0, :2] = np.nan, np.inf
        change(folder / "images" / "case000.nii.gz", values)
        with pytest.raises(UserError, match="case000.nii.gz: found 2 values that are not finite"):
            opened("VOLUMES", folder)[0]


class TestNnunet:
    @pytest.fixture
    def folder(self, tmp_path):
        return tmp_path / phantoms.write_nnunet_phantoms(tmp_path / "data", 2, 1, SHAPE, 1)

    def describe(self, folder, **changes):
        tree = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**tree, **changes}))

    @pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
    def test_splits_channels_and_regions(self, tmp_path, ending):
        phantoms.write_nnunet_phantoms(tmp_path, 2, 1, SHAPE, 1, ending)
        dataset = opened("nnU-Net", tmp_path)
        assert [case.name for case in dataset.cases()] == ["head_000", "head_001"] and dataset.in_channels == 2
        assert dataset.labels == ("whole_tumor", "tumor_core", "enhancing")
        labels = nib.load(tmp_path / "labelsTs" / f"head_002{ending}").get_fdata()
        expected = [labels > 0, np.isin(labels, (1, 3)), labels == 3]
        np.testing.assert_array_equal(truth("NNUNET", tmp_path, "Test"), expected)
        assert opened("NNUNET", tmp_path, labels="enhancing")[0].mask.shape == (1, 32, 32)

    def test_description_of_version_1(self, folder):
        tree = {"modality": {"0": "T1ce", "1": "FLAIR"}, "labels": {"0": "background", "1": "a", "2": "b", "3": "c"}}
        (folder / "dataset.json").write_text(json.dumps(tree))
        assert opened("NNUNET", folder).labels == ("a", "b", "c")

    def test_label_free(self, folder):
        for path in folder.glob("labelsTs/*"):
            path.unlink()
        assert len(opened("NNUNET", folder, need_masks=False, split="Test")) == SHAPE[2]
        with pytest.raises(UserError, match=r"1 cases without labels \(head_002\)"):
            list_truths(config("NNUNET", folder), "Test")

    def test_truths_need_no_images(self, folder):
        for path in folder.glob("imagesTs/*"):
            path.unlink()
        assert truth("NNUNET", folder, "Test").shape == (3, *SHAPE)

    def test_all_that_does_not_fit_in_one_error(self, folder):
        (folder / "imagesTr" / "head_000_0001.nii.gz").rename(folder / "imagesTr" / "head_000_0007.nii.gz")
        (folder / "labelsTr" / "head_001.nii.gz").rename(folder / "labelsTr" / "head_005.nii.gz")
        with pytest.raises(
            UserError,
            match=r"imagesTr: found 1 files without a channel's number \(.*head_000_0007.*\); "
            r"1 channels missing \(head_000_0001\); 1 cases without labels \(head_001\); "
            r"1 labels without an image \(.*head_005",
        ):
            opened("NNUNET", folder)

    def test_ignore_label(self, folder):
        self.describe(folder, labels={"background": 0, "necrosis": 1, "edema": 2, "ignore": 3})
        assert opened("NNUNET", folder, need_masks=False).labels == ("necrosis", "edema")
        with pytest.raises(UserError, match="label values 3; .* Label 3 means ignore, but here every pixel counts"):
            opened("NNUNET", folder)[0]

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"channel_names": ["T1"]}, "cannot be read"),
            ({"channel_names": {"1": "T1"}}, "cannot be read"),
            ({"labels": {"a b": 1, "A-B": 2}}, "label 'A-B' with 2"),
            ({"labels": {"a": "one"}}, "label 'a' with 'one'"),
            ({"labels": {"background": 0}}, "cannot be read"),
            ({"file_ending": ".mgz"}, "in files .mgz"),
        ],
    )
    def test_descriptions_that_are_none(self, folder, changes, message):
        self.describe(folder, **changes)
        with pytest.raises(UserError, match=f"dataset.json: found .*{message}"):
            opened("NNUNET", folder)

    def test_no_description(self, folder):
        (folder / "dataset.json").unlink()
        with pytest.raises(UserError, match="found no dataset.json"):
            opened("NNUNET", folder)

    def test_no_test_cases(self, folder):
        for path in folder.glob("*Ts/*"):
            path.unlink()
        with pytest.raises(UserError, match="imagesTs: found no case"):
            opened("NNUNET", folder, need_masks=False, split="Test")
        with pytest.raises(UserError, match="found no labelsTs"):
            list_truths(config("NNUNET", folder), "Test")

    def test_rules_of_channels(self, tmp_path):
        phantoms.write_nnunet_phantoms(tmp_path, 1, 0, (32, 32, 8), 1)
        self.describe(tmp_path, channel_names={"0": "CT", "1": "rescale_to_0_1"})
        dataset = opened("NNUNET", tmp_path)
        values = [nib.load(tmp_path / "imagesTr" / f"head_000_000{n}.nii.gz").get_fdata()[:, :, 4] for n in (0, 1)]
        np.testing.assert_allclose(dataset[4].image[0], np.clip(values[0], -1000, 1000) / 1000, atol=1e-6)
        assert dataset[4].image[1].min() == 0 and "channel 0000: Hounsfield" in dataset.normalisation
        assert np.corrcoef(values[1].ravel(), dataset[4].image[1].ravel())[0, 1] > 1 - 1e-9

    @pytest.mark.parametrize(
        "name, expected",
        [
            ("CT", [-1.0, 0.5, 1.0]),
            ("ct", [-1.0, 0.5, 1.0]),
            ("noNorm", [-2000, 500, 3000]),
            ("rescale_to_0_1", [0, 0.5, 1]),
            ("rgb_to_0_1", [-2000 / 255, 500 / 255, 3000 / 255]),
            ("T2", [-np.sqrt(1.5), 0, np.sqrt(1.5)]),
        ],
    )
    def test_rule_of_a_channel(self, name, expected):
        found = channel_rule(name)[1](np.array([-2000, 500, 3000]))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
        with pytest.raises(ValueError, match="1 values that are not finite"):
            channel_rule(name)[1](np.array([0, np.nan]))
        assert not channel_rule(name)[1](np.zeros(3)).any()


@pytest.mark.parametrize(
    "name, expected",
    [
        ("isic", "ISIC"),
        ("ISIC2018", "ISIC"),
        ("BraTS", "BRATS"),
        ("brats-2021", "BRATS"),
        ("Brats Slices", "BRATS_SLICES"),
        ("refuge", "REFUGE2"),
        ("nnU-Net", "NNUNET"),
        ("ddti", "DDTI"),
        ("Polyp", "IMAGES"),
        ("", "IMAGES"),
    ],
)
def test_names_of_layouts(name, expected):
    assert layout_name(name, "") == expected


def test_an_unknown_name_says_what_it_was_taken_for(tmp_path):
    with pytest.raises(UserError, match="--data_name 'BRAST' is none of ISIC, BRATS, .*taken for a plain one .IMAGES"):
        opened("BRAST", tmp_path)

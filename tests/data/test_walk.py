"""Test the walk through folders of data: what every layout reads, what it passes over, and that this is said."""

import contextlib
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.agreement import agree

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_files, list_truths, open_dataset, phantoms, walk
from guided_diffusion_core.data.check.inventory import take_inventory
from guided_diffusion_core.data.splits import parse_folder
from guided_diffusion_core.data.walk import noting_left_out, walk_data
from guided_diffusion_core.errors import UserError

SHAPE = (16, 16, 4)
TRASH = (".Trash-1000/files", ".ipynb_checkpoints", ".AppleDouble", "__MACOSX", "$RECYCLE.BIN", "@eaDir", "lost+found")
# layout -> function that writes a case of a seed into a folder, whose name is that of the case
WRITERS = {
    "BRATS": lambda folder, seed: phantoms.write_brats_phantom(folder.parent, folder.name, SHAPE, seed),
    "BRATS_SLICES": lambda folder, seed: phantoms.write_brats_slices_phantom(folder, folder.name, SHAPE, seed),
    "REFUGE2": lambda folder, seed: write_pair(folder, folder / "Disc_Cup_Masks", 128),
    "ISIC": lambda folder, seed: write_pair(folder / "x_Data", folder / "x_GroundTruth", 255),
    "IMAGES": lambda folder, seed: write_pair(folder / "images", folder / "masks", 255),
    "DDTI": lambda folder, seed: write_pair(folder / "images", folder / "masks", 255),
    "VOLUMES": lambda folder, seed: write_volumes(folder, seed),
}

USED_WHOLE = ("BRATS", "BRATS_SLICES", "REFUGE2")  # layouts whose test set is the whole folder


def write_pair(images, masks, value):
    """Write a picture and its mask, both named after the case."""
    name = next(part for part in (images.name, images.parent.name) if part.startswith("case"))
    for folder, values in ((images, 90), (masks, value)):
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32), values, np.uint8)).save(folder / f"{name}.png")


def write_volumes(folder, seed):
    phantoms.write_volume_phantoms(folder, 1, SHAPE, seed)
    for kind in ("images", "masks"):
        (folder / kind / "case000.nii.gz").rename(folder / kind / f"{folder.name}.nii.gz")


def write(name, folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[name](folder, 1)


def cases(name, folder, split="Training"):
    """Return the cases that training uses, which check-data and scoring must find too, and what is left out."""
    config = DataConfig(name, str(folder))
    with noting_left_out() as left_out:
        found = [case.name for case in open_dataset(config, 32, split, need_masks=True).cases()]
    inventory = take_inventory(lambda: list_files(config, split, True))
    assert inventory.cases == found == [truth.name for truth in list_truths(config, split)]
    assert not inventory.problems and inventory.left_out.kinds() == left_out.kinds()
    return found, left_out.kinds()


@pytest.mark.parametrize("name", WRITERS)
class TestEveryLayout:
    def test_a_link_to_a_case_is_followed(self, name, tmp_path):
        write(name, tmp_path / "data" / "case1")
        write(name, tmp_path / "elsewhere" / "case2")
        os.symlink(tmp_path / "elsewhere" / "case2", tmp_path / "data" / "case2")
        assert cases(name, tmp_path / "data") == (["case1", "case2"], {})

    def test_links_are_followed_once(self, name, tmp_path):
        """Pass over links to the folder itself, to its parent, to a sibling and to each other."""
        write(name, tmp_path / "data" / "case1")
        links = {"a": tmp_path / "data", "b": tmp_path, "c": "/", "d": tmp_path / "data" / "case1", "e": "f", "f": "e"}
        for link, target in links.items():
            os.symlink(target, tmp_path / "data" / link)
        found, left_out = cases(name, tmp_path / "data")
        assert found == ["case1"]
        assert left_out == {
            "link to a folder that is read already": ["a", "b", "c", "d"],
            "link that leads nowhere": ["e", "f"],
        }

    def test_a_linked_folder_of_data(self, name, tmp_path):
        write(name, tmp_path / "data" / "case1")
        os.symlink(tmp_path / "data", tmp_path / "link")
        assert cases(name, tmp_path / "link") == (["case1"], {})

    @pytest.mark.parametrize("trash", TRASH)
    def test_bins_and_hidden_folders(self, name, trash, tmp_path):
        write(name, tmp_path / "case1")
        write(name, tmp_path / trash / "case7")
        found, left_out = cases(name, tmp_path)
        assert found == ["case1"] and list(left_out.values()) == [[trash.split("/")[0]]]

    def test_files_of_file_managers(self, name, tmp_path):
        write(name, tmp_path / "case1")
        for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
            path.with_name(f"._{path.name}").write_bytes(b"mac")
            path.with_name("Thumbs.db").write_bytes(b"windows")
            path.with_name(".DS_Store").write_bytes(b"mac")
        assert cases(name, tmp_path) == (["case1"], {})

    def test_folders_in_folders_of_the_same_name(self, name, tmp_path):
        """Unpack every folder twice deep."""
        write(name, tmp_path / "case1")
        expected = cases(name, tmp_path)
        for folder in sorted((path for path in tmp_path.rglob("*") if path.is_dir()), reverse=True):
            folder.rename(folder.with_name("moved"))
            folder.mkdir()
            folder.with_name("moved").rename(folder / folder.name)
        assert cases(name, tmp_path) == expected

    @pytest.mark.parametrize("place", ["Valencia", "mitral_valve", "strain", "Testament", "CONTEST", "évaluer"])
    def test_words_that_are_no_split(self, name, place, tmp_path):
        for number, folder in enumerate((place, "Madrid", "Test_Hospital", "val")):
            write(name, tmp_path / folder / f"case{number}")
        found, left_out = cases(name, tmp_path)
        assert found == ["case0", "case1"]
        assert left_out == {"folder named test": ["Test_Hospital"], "folder named val": ["val"]}

    @pytest.mark.parametrize("words", [("train", "test", "val"), ("Training400", "TestSet", "ValidationData")])
    def test_splits(self, name, words, tmp_path):
        for number, folder in enumerate(words):
            write(name, tmp_path / folder / f"case{number}")
        write(name, tmp_path / "other" / "case9")
        for number, split in enumerate(("Training", "Test", "Validation")):
            found, left_out = cases(name, tmp_path, split)
            if split == "Test" and name in USED_WHOLE:
                assert (found, left_out) == (["case0", "case1", "case2", "case9"], {})
            else:
                assert found == [f"case{number}"] and sum(map(len, left_out.values())) > 2


def test_a_folder_named_after_its_case_is_no_split(tmp_path):
    """BraTS of 2020 has the word in every case: no split of the cases of a hospital that were added."""
    for folder in ("BraTS20_Training_001", "BraTS20_Training_002", "Hospital_001"):
        write("BRATS", tmp_path / folder)
    for split in ("Training", "Test"):
        assert len(cases("BRATS", tmp_path, split)[0]) == 3
    write("BRATS", tmp_path / "TrainingData" / "BraTS20_Validation_003")
    assert cases("BRATS", tmp_path)[0] == ["BraTS20_Validation_003"]


def test_archives_of_isic_unpacked_twice_deep_and_given_themselves(tmp_path):
    data = "ISIC2018_Task1-2_Training_Input"
    truth = "ISIC2018_Task1_Training_GroundTruth"
    for folder, ending in ((data, ""), (truth, "_segmentation")):
        (tmp_path / folder / folder).mkdir(parents=True)
        picture = Image.fromarray(np.full((32, 32), 255, np.uint8))
        picture.save(tmp_path / folder / folder / f"ISIC_0000000{ending}.png")
    for folder in (tmp_path, tmp_path / data, tmp_path / data / data):
        config = DataConfig("ISIC", str(folder))
        if folder.parent.name == data:  # there is no folder of masks next to the inner one
            shutil.copytree(tmp_path / truth / truth, tmp_path / data / truth)
        assert open_dataset(config, 32, "Training", need_masks=True)[0].mask.all()


def test_the_folder_of_an_nnunet_set_is_found_below(tmp_path):
    phantoms.write_nnunet_phantoms(tmp_path / "Dataset001" / "Dataset001", 2, 1, SHAPE, 1)
    assert len(open_dataset(DataConfig("NNUNET", str(tmp_path)), 32, "Training", True).cases()) == 2
    phantoms.write_nnunet_phantoms(tmp_path / "Dataset002", 1, 1, SHAPE, 1)
    with pytest.raises(UserError, match="found 2 data sets"):
        open_dataset(DataConfig("NNUNET", str(tmp_path)), 32, "Training", True)


@pytest.mark.parametrize(
    "folders, words",
    [
        (("images/{}", "masks/{}"), ("train", "test")),
        (("{}/images", "{}/annotations"), ("train", "test")),
        (("{}_images", "{}_masks"), ("train", "test")),
        (("images{}", "labels{}"), ("Tr", "Ts")),
        (("images_{}2017", "Ground-Truth_{}2017"), ("train", "test")),
        (("{}Images", "{}Masks"), ("Training", "Test")),
        (("{}", "{}"), ("train", "testset")),
    ],
)
def test_places_of_images_and_masks(tmp_path, folders, words):
    for word in words:
        for folder, ending in zip(folders, ("", "_mask")):
            (tmp_path / folder.format(word)).mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(np.full((32, 32), 255, np.uint8))
            picture.save(tmp_path / folder.format(word) / f"of_{word}{ending}.png")
    for split, word in zip(("Training", "Test"), words):
        dataset = open_dataset(DataConfig("IMAGES", str(tmp_path)), 32, split, need_masks=True)
        assert [case.name for case in dataset.cases()] == [f"of_{word}"] and dataset[0].mask.all()


def test_one_text_in_two_forms(tmp_path):
    composed = "caf\u00e9"
    decomposed = "cafe\u0301"
    for name, image, mask in (
        ("1", composed, decomposed),
        ("2", decomposed, composed),
        ("3", "\ud55c", "\u1112\u1161\u11ab"),
    ):
        for folder, stem in (("images", image), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.full((32, 32), 255, np.uint8)).save(tmp_path / folder / f"{stem}{name}.png")
    dataset = open_dataset(DataConfig("IMAGES", str(tmp_path)), 32, "Training", need_masks=True)
    assert sorted(case.name for case in dataset.cases()) == [f"{composed}1", f"{composed}2", "\ud55c3"]
    assert all(dataset[index].mask.all() for index in range(3))


def test_true_paths_are_kept(tmp_path):
    folder = tmp_path / "cafe\u0301" / "cafe\u0301"
    folder.mkdir(parents=True)
    (folder / "x\u0301.png").write_bytes(b"")
    [file] = walk_data(tmp_path)
    assert (file.parts, file.name, file.path) == (("caf\u00e9",), "x\u0301.png", str(folder / "x\u0301.png"))


def test_pipes_and_devices_are_no_files(tmp_path):
    write("IMAGES", tmp_path / "case1")
    os.mkfifo(tmp_path / "case1" / "images" / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "case1" / "images" / "zero.png")
    found, left_out = cases("IMAGES", tmp_path)
    assert found == ["case1"] and left_out == {
        "special file (device or pipe)": ["case1/images/pipe.png", "case1/images/zero.png"]
    }


# names of files and folders: text of all scripts, bytes that are no UTF-8, and what the walk has rules for
NAMES = st.one_of(
    st.text("aé病\u0301", min_size=1, max_size=4),
    st.binary(min_size=1, max_size=4).map(lambda name: os.fsdecode(name.translate(bytes.maketrans(b"/\0", b"xx")))),
    st.sampled_from(
        ["test", "val", "train", ".hidden", "__MACOSX", "images", "masks", "a.png", "Thumbs.db", "._a.png"]
    ),
).filter(lambda name: name not in (".", ".."))


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=6), st.integers(0, 5))
def test_any_tree_of_names(tmp_path_factory, paths, links):
    """Walk any tree: each file that no rule excludes is found once, by a path that exists; nothing raises."""
    root = tmp_path_factory.mktemp("tree")
    expected = set()
    for parts in paths:
        folder = os.path.join(root, *parts)
        try:
            os.makedirs(folder, exist_ok=True)
            path = os.path.join(folder, "file.png")
            open(path, "wb").close()
        except OSError:  # a file of this name is there, or the file system does not take the name
            continue
        if not any(part.startswith(".") or part.lower() in walk.TRASH for part in parts):
            expected.add(path)
    for number in range(links):
        target = os.path.join(root, *paths[number % len(paths)][:2]) if paths else root
        os.symlink(target, os.path.join(root, f"link{number}"))
    with noting_left_out() as left_out:
        found = [file.path for file in walk_data(root)]
    assert len({os.path.realpath(path) for path in found}) == len(found) and set(found) >= expected
    assert str(left_out).isprintable()
    for layout in ("IMAGES", "BRATS", "ISIC", "REFUGE2"):
        config = DataConfig(layout, str(root))
        for split in ("Training", "Test", "Validation"):
            with contextlib.suppress(UserError):
                list_files(config, split, False)


@given(
    st.text(max_size=12)
    | st.lists(st.sampled_from(["Train", "val", "TEST", "s", "_", "2", "é", "训", "Set"])).map("".join)
)
def test_any_name_of_a_folder(name):
    split, rest = parse_folder(name)
    assert split in (None, "Training", "Validation", "Test") and rest == rest.lower()
    if not any(word in name.lower() for word in ("train", "val", "test", "tr", "va", "ts")):
        assert split is None


@pytest.mark.parametrize(
    "name, file, kind",
    [
        ("IMAGES", "images/b.webp", "file of a kind that this layout does not read"),
        ("ISIC", "x_Data/b.webp", "file of a kind that this layout does not read"),
        ("ISIC", "Part3_Training_GroundTruth.csv", "csv file without the columns img and seg"),
        ("REFUGE2", "c.dcm", "file of a kind that this layout does not read"),
        ("BRATS", "case1/case1_adc.nii.gz", "volume file of unknown modality"),
        ("VOLUMES", "images/preview.png", "file of a kind that this layout does not read"),
        ("BRATS_SLICES", "case1.nii.gz", "file of a kind that this layout does not read"),
    ],
)
def test_files_that_are_not_read_are_listed(name, file, kind, tmp_path):
    write(name, tmp_path / "case1")
    path = tmp_path / file if name.startswith("BRATS") or "/" not in file else tmp_path / "case1" / file
    path.write_bytes(b"x")
    found, left_out = cases(name, tmp_path)
    assert found == ["case1"] and left_out == {kind: [str(path.relative_to(tmp_path))]}


@pytest.mark.parametrize("name", WRITERS)
class TestCheckAndTrainingAgree:
    """Whatever training refuses in such folders, the check reports in the same words."""

    def test_whole_folders(self, name, tmp_path):
        write(name, tmp_path / "data" / "Valencia" / "case1")
        write(name, tmp_path / "elsewhere" / "case2")
        write(name, tmp_path / "data" / ".Trash-1000" / "case3")
        os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "link")
        assert agree(tmp_path / "data", name) == []

    @pytest.mark.parametrize("place", ["strain", "link", "caf\u00e9/cafe\u0301"])
    def test_a_mask_that_is_missing(self, name, place, tmp_path):
        folder = tmp_path / "data" / place
        write(name, tmp_path / "data" / "case1")
        if place == "link":
            write(name, tmp_path / "elsewhere" / "case2")
            os.symlink(tmp_path / "elsewhere", folder)
        else:
            write(name, folder / "case2")
        masks = [path for path in folder.rglob("*") if path.is_file() and is_mask(name, path)]
        if place == "link":
            masks = [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file() and is_mask(name, path)]
        for path in masks:
            path.unlink()
        assert masks and agree(tmp_path / "data", name)

    def test_a_case_that_is_there_twice(self, name, tmp_path):
        write(name, tmp_path / "Madrid" / "case1")
        write(name, tmp_path / "Valencia" / "case1")
        assert agree(tmp_path, name)


def is_mask(name, path):
    if name.startswith("BRATS"):
        return "_seg" in path.name
    return "mask" in path.parent.name.lower() or "GroundTruth" in path.parent.name


@pytest.mark.parametrize("file", ["b_0000.nii", "sub/b_0000.nii.gz", "b.png"])
def test_files_that_an_nnunet_set_does_not_read_are_listed(file, tmp_path):
    phantoms.write_nnunet_phantoms(tmp_path, 1, 1, SHAPE, 1)
    path = tmp_path / "imagesTr" / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    found, left_out = cases("NNUNET", tmp_path)
    assert len(found) == 1 and list(left_out.values()) == [[f"imagesTr/{file}"]]

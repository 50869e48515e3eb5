"""Test the layout that a folder shows: each layout by its phantoms, folders that show several, and folders of none."""

import numpy as np
import pytest
from PIL import Image
from support.agreement import agree
from support.commands import assert_refused

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import LAYOUTS, open_dataset, phantoms
from guided_diffusion_core.data.found import CONVERSIONS
from guided_diffusion_core.data.guess import data_name_of, find_layouts
from guided_diffusion_core.errors import UserError

SHAPE = (16, 16, 4)
WRITERS = {
    "ISIC": lambda folder: phantoms.write_isic_phantoms(folder, 2, 2, 32, 1),
    "BRATS": lambda folder: phantoms.write_brats_phantom(folder, "A", SHAPE, 1),
    "BRATS_SLICES": lambda folder: phantoms.write_brats_slices_phantom(folder, "brats_train_001", SHAPE, 1),
    "REFUGE2": lambda folder: phantoms.write_refuge2_phantoms(folder, 2, 32, 1),
    "IMAGES": lambda folder: phantoms.write_image_phantoms(folder, 2, 32, 1),
    "VOLUMES": lambda folder: phantoms.write_volume_phantoms(folder, 2, SHAPE, 1),
    "NNUNET": lambda folder: phantoms.write_nnunet_phantoms(folder, 2, 2, SHAPE, 1),
}


def test_every_layout_can_be_found_but_one_that_plain_folders_read():
    assert WRITERS.keys() == {name for name, layout in LAYOUTS.items() if layout.signs}
    assert LAYOUTS.keys() - WRITERS.keys() == {"DDTI"}


@pytest.mark.parametrize("name", WRITERS)
class TestEveryLayout:
    @pytest.fixture
    def folder(self, name, tmp_path):
        WRITERS[name](tmp_path / "data")
        return tmp_path / "data"

    def test_it_is_found_and_said(self, name, folder, capsys):
        assert data_name_of({"data_dir": str(folder)}) == name
        said = capsys.readouterr().err
        assert said.startswith(f"--data_name {name} ({LAYOUTS[name].summary}), as ") and len(said.splitlines()) == 1

    def test_a_given_name_counts(self, name, folder, capsys):
        assert data_name_of({"data_dir": str(folder), "data_name": "ddti"}) == "ddti"
        assert capsys.readouterr().err == ""

    def test_two_layouts_in_one_folder(self, name, folder):
        other = "REFUGE2" if name != "REFUGE2" else "NNUNET"
        WRITERS[other](folder / "other")
        if LAYOUTS[name].is_general:
            assert data_name_of({"data_dir": str(folder)}) == other
            return
        with pytest.raises(UserError, match="--data_name: found none, and signs of 2 layouts in .*one layout") as error:
            data_name_of({"data_dir": str(folder)})
        assert name in str(error.value) and other in str(error.value)

    @pytest.mark.parametrize("wrong", ["BRATS", "BRATS_SLICES", "NNUNET", "VOLUMES", "REFUGE2"])
    def test_a_wrong_name_is_told_the_right_one(self, name, wrong, folder):
        if wrong == name:
            return
        try:
            open_dataset(DataConfig(wrong, str(folder)), 32, "Training", True)
        except UserError as error:
            if "no file of this layout" in str(error):
                assert f"The folder looks like --data_name {name}." in str(error)
                assert agree(folder, wrong) == [str(error)]


def test_pictures_and_volumes_are_two_layouts(tmp_path):
    WRITERS["IMAGES"](tmp_path)
    WRITERS["VOLUMES"](tmp_path)
    with pytest.raises(UserError, match="signs of 2 layouts"):
        data_name_of({"data_dir": str(tmp_path)})


@pytest.mark.parametrize(
    "names, advice",
    [
        (["a.mgz", "b.MGZ", "notes.txt"], "with nibabel"),
        (["a.webp"], "Convert the pictures"),
        (["x.zip"], "Unpack"),
        (["a.npz"], "nibabel"),
        (["a.doc"], "Check the path"),
    ],
)
@pytest.mark.parametrize("layout", ["ISIC", "BRATS", "IMAGES", "VOLUMES", "REFUGE2", "NNUNET", "BRATS_SLICES"])
def test_what_a_folder_of_no_layout_holds_is_listed(names, advice, layout, tmp_path):
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError) as error:
        open_dataset(DataConfig(layout, str(tmp_path)), 32, "Training", True)
    assert names[0] in str(error.value) and advice in str(error.value)
    assert agree(tmp_path, layout) == [str(error.value)]
    with pytest.raises(UserError, match="no file of any layout"):
        data_name_of({"data_dir": str(tmp_path)})


def test_many_files_are_counted(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02d}.mgz").write_text("x")
    with pytest.raises(UserError, match=r"only 20 \.mgz \(00.mgz, 01.mgz, 02.mgz, …\)"):
        open_dataset(DataConfig("VOLUMES", str(tmp_path)), 32, "Training", True)


def test_no_conversion_of_files_that_a_layout_reads():
    for ending in CONVERSIONS:
        assert not find_layouts_of(f"a{ending}")


def find_layouts_of(name):
    from guided_diffusion_core.data.walk import DataFile

    file = DataFile("root", ("images",), name, f"root/images/{name}")
    return [layout.name for layout in LAYOUTS.values() if layout.signs and layout.signs([file])]


class TestCommands:
    @pytest.fixture
    def folder(self, tmp_path):
        for kind in ("images", "annotations"):
            (tmp_path / "data" / kind).mkdir(parents=True)
            for number in range(2):
                picture = Image.fromarray(np.full((32, 32), 255 if kind == "annotations" else 9, np.uint8))
                picture.save(tmp_path / "data" / kind / f"{number}.png")
        return tmp_path / "data"

    def test_training(self, folder, command, tmp_path):
        code, out, errors = command(
            "segmentation_train", "--data_dir", folder, "--out_dir", tmp_path / "out", "--dry_run"
        )
        assert code in (0, None) and '"data_name": "IMAGES"' in out
        assert "--data_name IMAGES (" in errors

    def test_check(self, folder, command):
        code, _, errors = command("check_data", "--data_dir", folder)
        assert code in (0, None) and "--data_name IMAGES (" in errors

    @pytest.mark.parametrize("script", ["segmentation_train", "check_data", "segmentation_env"])
    def test_no_folder(self, script, command, tmp_path):
        assert_refused(command(script, "--data_dir", tmp_path / "nowhere"), "--data_dir", "no such folder")


def test_find_layouts_of_an_empty_folder(tmp_path):
    assert find_layouts(str(tmp_path)) == {}

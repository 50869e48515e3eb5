"""Test that a new layout needs only a new module in data/layouts: write one, and use it in every way."""

import argparse
import sys

import numpy as np
import pytest
from PIL import Image

from guided_diffusion_core import command_line, data
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import layouts
from guided_diffusion_core.data.check.checking import Check
from guided_diffusion_core.data.check.inventory import take_inventory
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError

MODULE = '''
"""Cells: CELL.png next to CELL.mask.png, with the nucleus 2 in the cell 1."""

from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.layout import PictureLayout
from guided_diffusion_core.data.pairs import pair_by_stem
from guided_diffusion_core.data.walk import walk_data
from guided_diffusion_core.system.files import require_folder

EXPECTED = "CELL.png next to CELL.mask.png"


def find_pairs(data_dir, split):
    files = {".mask.png": [], ".png": []}
    for file in walk_data(require_folder(data_dir, "--data_dir", EXPECTED)):
        ending = next(ending for ending in files if file.name.endswith(ending))
        files[ending].append((file.name.removesuffix(ending), file.path))
    return pair_by_stem(files[".png"], files[".mask.png"], data_dir)


LAYOUT = PictureLayout(
    name="TOY_CELLS",
    summary="cells and nuclei",
    order=45,
    expected=EXPECTED,
    labels=LabelMap(names=("cell", "nucleus"), values=(frozenset({1, 2}), frozenset({2}))),
    default_labels=("cell", "nucleus"),
    find_pairs=find_pairs,
)
'''


@pytest.fixture
def layout_folder(tmp_path, monkeypatch):
    """Make a second folder of layouts, which `find_layouts` searches too."""
    folder = tmp_path / "layouts"
    folder.mkdir()
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(folder)])
    modules = set(sys.modules)
    yield folder
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    if hasattr(layouts, "toy_cells"):
        del layouts.toy_cells


@pytest.fixture
def cells(tmp_path, layout_folder, monkeypatch):
    """Return the configuration of a folder with three cells, in a layout that only a new module defines."""
    (layout_folder / "toy_cells.py").write_text(MODULE)
    monkeypatch.setitem(data.LAYOUTS, "TOY_CELLS", layouts.find_layouts()["TOY_CELLS"])
    folder = tmp_path / "data"
    folder.mkdir()
    y, x = np.mgrid[:40, :40]
    for number in range(3):
        distance = np.hypot(y - 20, x - 15 - number)
        labels = (distance < 10).astype(np.uint8) + (distance < 4)
        Image.fromarray(labels).save(folder / f"c{number}.mask.png")
        Image.fromarray(100 * labels + 20).save(folder / f"c{number}.png")
    return DataConfig(data_name="toy-cells", data_dir=str(folder))


def test_a_new_module_has_its_place_among_the_layouts(cells):
    names = list(layouts.find_layouts())
    assert names.index("REFUGE2") + 1 == names.index("TOY_CELLS") == names.index("DDTI") - 1
    assert [name for name in names if name != "TOY_CELLS"] == [name for name in data.LAYOUTS if name != "TOY_CELLS"]


def test_examples_and_truths(cells):
    dataset = data.open_dataset(cells, 40, "Training", need_masks=True)
    assert (len(dataset), dataset.labels, dataset[0].image.shape) == (3, ("cell", "nucleus"), (3, 40, 40))
    truths = data.list_truths(cells)
    assert [truth.name for truth in truths] == ["c0", "c1", "c2"]
    for truth, index in zip(truths, range(3)):
        masks = read_truth_masks(truth)
        np.testing.assert_array_equal(masks, dataset[index].mask)
        assert masks[1].any() and (masks[0] > masks[1]).any()


def test_check_finds_its_problems(cells, tmp_path):
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(tmp_path / "data" / "c1.mask.png")
    (tmp_path / "data" / "c2.mask.png").unlink()
    inventory = take_inventory(lambda: data.list_files(cells, "Training", need_masks=True))
    problems = Check({"train": inventory}, workers=1).problems
    texts = [str(problem) for problem in problems if problem.severity == "error"]
    assert len(texts) == 2
    assert any("c1.mask.png: found label values 7; expected only the values 0, 1, 2" in text for text in texts)
    assert any("c2.png: found an image without a mask" in text for text in texts)


def test_errors_name_its_files(cells, tmp_path):
    with pytest.raises(UserError, match="nowhere.*no such folder.*CELL.png next to CELL.mask.png"):
        data.open_dataset(DataConfig(data_name="TOY_CELLS", data_dir=str(tmp_path / "nowhere")), 40, "Test", False)
    with pytest.raises(UserError, match="--slices"):
        data.list_truths(DataConfig(data_name="TOY_CELLS", data_dir=cells.data_dir, slices="odd"))


def test_help_names_it(cells):
    parser = argparse.ArgumentParser()
    command_line.add_settings(parser, DataConfig, "data_name")
    assert "TOY_CELLS (cells and nuclei)" in " ".join(parser.format_help().split())


def test_two_layouts_of_one_name_are_refused(layout_folder):
    (layout_folder / "toy_cells.py").write_text(MODULE.replace("TOY_CELLS", "DDTI"))
    with pytest.raises(ValueError, match="two modules in data/layouts define a layout of the same name: .*DDTI, DDTI"):
        layouts.find_layouts()

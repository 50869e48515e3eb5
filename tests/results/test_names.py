"""Test names of files and labels in any script and any encoding: nothing is lost, and all reports are written."""

import json
import os
import unicodedata

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_truths, open_dataset
from guided_diffusion_core.data.names import is_label_name, name_key
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.results.outputs import CaseWriter, find_output, require_names
from guided_diffusion_core.sampling.run import SamplingRun

# names of files as archives of other systems leave them on a disk of UTF-8
STEMS = {
    "GBK": "病例".encode("gbk"),
    "Latin-1": "Müller".encode("latin-1"),
    "Shift-JIS": "患者".encode("shift-jis"),
    "control characters": b"a\x1b[31m\xff",
    "UTF-8": "病例".encode(),
}
LABELS = ["肿瘤", "опухоль", "हड्डी", "ورم", "œdème", "GD-enhancing"]


def save(path, values):
    """Write a picture to a path of bytes."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        Image.fromarray(values).save(file, "PNG")


@pytest.fixture(params=STEMS)
def folder(request, tmp_path):
    """Write two pictures and masks with such names."""
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 10:30] = 255
    for number in range(2):
        name = STEMS[request.param] + b"%d.png" % number
        save(os.fsencode(tmp_path / "data" / "images") + b"/" + name, mask // 2)
        save(os.fsencode(tmp_path / "data" / "masks") + b"/" + name, mask)
    return tmp_path / "data"


def sample_truths(folder, out_dir):
    """Sample the masks of a folder; the sampler gives a tenth of noise and the truth."""
    config = DataConfig("IMAGES", str(folder))
    dataset = open_dataset(config, 32, "Test", need_masks=True)
    masks = {dataset[index].noise_key: dataset[index].mask for index in range(len(dataset))}

    def sampler(images, keys):
        return np.stack([0.9 * masks[key] for key in keys])[None].astype(np.float32)

    SamplingRun(dataset, out_dir, 2, 0.5, {}).run(sampler)
    return [case.name for case in dataset.cases()]


def test_names_that_are_no_utf8_come_through_a_whole_run(folder, tmp_path, command):
    names = sample_truths(folder, tmp_path / "a")
    sample_truths(folder, tmp_path / "b")
    data = ["--data_name", "IMAGES", "--data_dir", folder]
    code, out, errors = command("segmentation_env", "--inp_pth", tmp_path / "a", *data)
    assert code in (0, None), errors
    assert "\x1b" not in out + errors
    summary = json.loads((tmp_path / "a" / "summary.json").read_text(encoding="utf-8"))
    assert [row["case"] for row in summary["metric_per_case"]] == names
    assert summary["mean"]["mask"]["Dice"] == 1
    assert (tmp_path / "a" / "report.html").read_text(encoding="utf-8").count("<figure") >= 2
    code, _, errors = command("segmentation_env", "--inp_pth", tmp_path / "b", *data)
    assert code in (0, None), errors
    # reads the names from the summaries again
    code, _, errors = command("compare_runs", tmp_path / "a", tmp_path / "b", "--out_dir", tmp_path / "c")
    assert code in (0, None), errors
    compared = json.loads((tmp_path / "c" / "comparison.json").read_text(encoding="utf-8"))
    assert {row["case"] for row in compared["masks"]["mask"]} == set(names)
    assert (tmp_path / "c" / "comparison.html").read_text(encoding="utf-8")


def test_the_check_reports_such_names(folder, tmp_path, command):
    code, _, errors = command(
        "check_data", "--data_name", "IMAGES", "--data_dir", folder, "--out_dir", tmp_path / "check"
    )
    assert code in (0, None), errors
    assert json.loads((tmp_path / "check" / "problems.json").read_text(encoding="utf-8"))["files"] == {"train": 4}


def write_labelled(folder, layout, labels):
    values = np.arange(32 * 32).reshape(32, 32) // 100 % (len(labels) + 1)
    numbers = {label: number for number, label in enumerate(labels, 1)}
    image, mask = ("images/a", "masks/a") if layout == "IMAGES" else ("imagesTr/a_0000", "labelsTr/a")
    for path, content in ((image, values * 20), (mask, values)):
        save(os.fsencode(folder / f"{path}.png"), content.astype(np.uint8))
    if layout == "IMAGES":
        tree = numbers
    else:
        tree = {"channel_names": {"0": "X"}, "labels": {"background": 0, **numbers}, "file_ending": ".png"}
    name = "labels.json" if layout == "IMAGES" else "dataset.json"
    (folder / name).write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    return values


@pytest.mark.parametrize("layout", ["IMAGES", "NNUNET"])
def test_labels_of_any_script(layout, tmp_path, command):
    values = write_labelled(tmp_path / "data", layout, LABELS)
    dataset = open_dataset(DataConfig(layout, str(tmp_path / "data")), 32, "Training", need_masks=True)
    labels = [name_key(label).replace("-", "_") if layout == "NNUNET" else name_key(label) for label in LABELS]
    assert list(dataset.labels) == labels
    for number, mask in enumerate(dataset[0].mask, 1):
        np.testing.assert_array_equal(mask, values == number)
    case = dataset.cases()[0]
    masks = dataset[0].mask[None]
    paths = CaseWriter(tmp_path / "out", dataset.labels).write(case, masks, 0.1 * masks, 0.5)
    assert all(os.path.exists(path) for path in paths.values()) and len(paths) == 18
    chosen = "肿瘤，Опухоль"  # with the comma of a Chinese keyboard
    config = DataConfig(layout, str(tmp_path / "data"), labels=chosen)
    assert open_dataset(config, 32, "Training", True).labels == ("肿瘤", "опухоль")
    if layout == "IMAGES":
        code, out, errors = command(
            "segmentation_env", "--inp_pth", tmp_path / "out", "--data_name", layout, "--data_dir", tmp_path / "data"
        )
        assert code in (0, None), errors
        assert "肿瘤" in out and "肿瘤" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a,b", "-a", "a.b", "\udcb2", "a\x1b", "..", "a\u202eb"])
def test_no_label_names(name, tmp_path):
    assert not is_label_name(name)
    write_labelled(tmp_path, "IMAGES", ["x"])
    (tmp_path / "labels.json").write_text(json.dumps({name: 1}))
    with pytest.raises(UserError, match="labels.json: found something else"):
        open_dataset(DataConfig("IMAGES", str(tmp_path)), 32, "Training", True)


@pytest.mark.parametrize("names", [("A", "a"), ("É", "é"), ("é", "e\u0301")])
def test_labels_whose_files_would_be_the_same(names, tmp_path):
    write_labelled(tmp_path, "IMAGES", names)
    with pytest.raises(UserError, match="labels.json: found something else"):
        open_dataset(DataConfig("IMAGES", str(tmp_path)), 32, "Training", True)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_predictions_whose_names_have_another_form(form, tmp_path):
    path = tmp_path / f"{unicodedata.normalize(form, 'café')}_mask.png"
    save(os.fsencode(path), np.zeros((8, 8), np.uint8))
    for wanted in ("NFC", "NFD"):
        assert find_output(tmp_path, unicodedata.normalize(wanted, "café"), "mask") == str(path)


@pytest.mark.parametrize(
    "stem, labels",
    [("a" * 240, ("mask",)), ("病" * 78, ("mask",)), ("é" * 120, ("mask",)), ("a" * 190, ("x" * 60, "y"))],
)
def test_names_that_are_too_long_are_refused_before_the_network_runs(stem, labels, tmp_path):
    for name in (stem, "short"):
        save(os.fsencode(tmp_path / "data" / "images" / f"{name}.png"), np.zeros((32, 32), np.uint8))
    dataset = open_dataset(DataConfig("IMAGES", str(tmp_path / "data")), 32, "Test", need_masks=False)
    dataset.labels = labels

    def sampler(images, keys):
        raise AssertionError("the network runs")

    with pytest.raises(UserError, match=r"--out_dir .*out: found names too long for its file system.* for 1 cases"):
        SamplingRun(dataset, tmp_path / "out", 1, 0.5, {}).run(sampler)


def test_the_longest_name_can_be_written(tmp_path):
    """Write the longest name that is accepted: it is not refused by the file system."""
    length = 255
    while True:
        save(os.fsencode(tmp_path / "images" / f"{'a' * min(length, 251)}.png"), np.zeros((32, 32), np.uint8))
        dataset = open_dataset(DataConfig("IMAGES", str(tmp_path)), 32, "Test", need_masks=False)
        try:
            require_names(tmp_path / "out", dataset.cases(), dataset.labels)
            break
        except UserError:
            (tmp_path / "images" / f"{'a' * min(length, 251)}.png").unlink()
            length -= 1
    case = dataset.cases()[0]
    values = np.zeros((1, 32, 32), np.float32)
    paths = CaseWriter(tmp_path / "out").write(case, values, values, 0.5)
    assert all(os.path.getsize(path) for path in paths.values()) and len(case.name) > 150


def test_volumes_with_such_names(tmp_path):
    name = os.fsdecode("头".encode("gbk"))
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        nib.save(
            nib.Nifti1Image(np.eye(8, dtype=np.uint8)[..., None].repeat(2, 2), np.eye(4)), tmp_path / f"{kind}.nii"
        )
        (tmp_path / f"{kind}.nii").rename(tmp_path / kind / f"{name}.nii")
    config = DataConfig("VOLUMES", str(tmp_path))
    [truth] = list_truths(config)
    assert truth.name == name and len(open_dataset(config, 32, "Training", True)) == 2

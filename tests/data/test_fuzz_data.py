"""Test damaged data and random words on the command line: each loads or ends in one clear error, in time."""

import csv
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.agreement import agree
from support.fuzzing import outcome, pictures, time_limit, try_all
from support.mutants import inner_mutants, mutants
from support.picture_kinds import MASK, VOC, by_mask, content, palette, transparent_palette, with_alpha, write

from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.data import list_files, list_truths, open_dataset, phantoms
from guided_diffusion_core.data.check import checking
from guided_diffusion_core.data.check.inventory import take_inventory
from guided_diffusion_core.data.formats.labels import split_names
from guided_diffusion_core.data.formats.slices import parse_slices
from guided_diffusion_core.data.layouts.isic import find_pairs
from guided_diffusion_core.data.truths import read_truth_masks

BRATS_CROP = np.s_[100:116, 120:136, 80:86]  # brain and tumour of BraTS2021_00000
QUIET = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}

pytestmark = pytest.mark.filterwarnings("ignore")  # the decoders warn about damaged files


@pytest.fixture(autouse=True)
def without_bars(monkeypatch):
    monkeypatch.setattr(checking, "progress", lambda items, **_: items)


def use(name, folder, size=32):
    """Return what the commands do with a data set as functions: train, score and check."""
    config = DataConfig(name, str(folder))

    def train():
        dataset = open_dataset(config, size, "Training", need_masks=True)
        for index in range(min(2, len(dataset))):
            assert np.isfinite(dataset[index].image).all()

    def score():
        for truth in list_truths(config, "Training"):
            read_truth_masks(truth)

    def check():
        inventory = take_inventory(lambda: list_files(config, "Training", True))
        result = checking.Check({"train": inventory}, workers=1)
        json.dumps([result.report(), result.fingerprint()], allow_nan=False)

    return train, score, check


def brats_crop(shared_data, folder, ending):
    """Write the middle of a real case; return the paths of one modality and of the labels."""
    (folder / "A").mkdir()
    for source in (shared_data / "BraTS2021" / "Train" / "BraTS2021_00000").iterdir():
        part = source.name.removesuffix(".nii.gz").rsplit("_", 1)[1]
        nib.save(nib.load(source).slicer[BRATS_CROP], folder / "A" / f"A_{part}{ending}")
    return folder / "A" / f"A_t1{ending}", folder / "A" / f"A_seg{ending}"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_volumes(shared_data, tmp_path, ending):
    for number, path in enumerate(brats_crop(shared_data, tmp_path, ending)):
        content = path.read_bytes()
        damaged = [*mutants(content, 28, number)]
        if ending == ".nii.gz":
            damaged += inner_mutants(content, 28, number, "gzip")
        try_all(path, damaged, use("BRATS", tmp_path))


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "bmp"])
def test_pictures(shared_data, tmp_path, ending):
    photograph, grey, mask = pictures(shared_data)
    image_path = tmp_path / "images" / f"1.{ending}"
    mask_path = tmp_path / "masks" / f"1.{ending.replace('jpg', 'png')}"
    for path, picture in ((image_path, grey if ending == "png" else photograph), (mask_path, mask)):
        path.parent.mkdir()
        picture.save(path)
        damaged = mutants(path.read_bytes(), 70, len(ending))
        if path.suffix == ".png":
            damaged = [*damaged, *inner_mutants(path.read_bytes(), 70, 9, "png")]
        if path is mask_path:
            try_all(path, damaged, use("IMAGES", tmp_path))
        else:
            masks = mask
            damaged_images = damaged
    assert masks.size == photograph.size
    try_all(image_path, damaged_images, use("IMAGES", tmp_path))


# ways of storing a picture and a mask that have decoding paths of their own: name -> (ending, content)
STORED = {
    "palette": ("png", content(palette(MASK, VOC), "PNG")),
    "alpha": ("png", content(with_alpha(by_mask(255), by_mask(255)), "PNG")),
    "transparent palette": ("png", transparent_palette(MASK, VOC[:6], [0, 255])),
    "EXIF": (
        "jpg",
        content(by_mask((255, 255, 255)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\3" + bytes(7)),
    ),
    "camera": (
        "jpg",
        content(by_mask((255, 255, 255)), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    ),
    "pages": ("tif", content(by_mask(255), "TIFF", save_all=True, append_images=[Image.fromarray(MASK)])),
    "floats": ("tif", content(by_mask(1, dtype=np.float32), "TIFF")),
    "16 bits": ("png", content(by_mask(65535, dtype=np.uint16), "PNG")),
}


@pytest.mark.parametrize("kind", STORED)
def test_training_and_check_agree_on_damaged_files(tmp_path, kind):
    ending, stored = STORED[kind]
    for part in ("images", "masks"):
        write(tmp_path / part / f"1.{ending}", stored)
    damaged = [*mutants(stored, 40, len(kind))]
    if ending == "png":
        damaged += inner_mutants(stored, 40, 9, "png")
    for part in ("images", "masks"):
        path = tmp_path / part / f"1.{ending}"
        for damage, mutant in damaged:
            path.write_bytes(mutant)
            with time_limit():
                agree(tmp_path, "IMAGES")
            for action in use("IMAGES", tmp_path):
                outcome(action, f"{path.name}: {damage}")
        path.write_bytes(stored)


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_tiff_of_three_channels_with_16_bits(shared_data, tmp_path, compression):
    photograph, _, mask = pictures(shared_data)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask.save(tmp_path / "masks" / "1.png")
    path = tmp_path / "images" / "1.tif"
    tifffile.imwrite(path, np.asarray(photograph).astype(np.uint16) * 257, photometric="rgb", compression=compression)
    try_all(path, mutants(path.read_bytes(), 70, 6), use("IMAGES", tmp_path))


def test_claims_of_enormous_sizes_are_refused_at_once(shared_data, tmp_path):
    path, _ = brats_crop(shared_data, tmp_path, ".nii")
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([32767] * 3, "<i2").tobytes()  # dim[1] to dim[3]: 3.5e13 voxels
    assert outcome(lambda: use("BRATS", tmp_path)[0]() if path.write_bytes(content) else None, "dim") == "refused"
    for action in use("BRATS", tmp_path)[:2]:
        outcome(action, "dim")


def test_dataset_json(tmp_path):
    phantoms.write_nnunet_phantoms(tmp_path, 1, 1, (12, 12, 4), 1)
    path = tmp_path / "dataset.json"
    try_all(path, mutants(path.read_bytes(), 60, 1), use("NNUNET", tmp_path))


def test_labels_json(tmp_path):
    phantoms.write_image_phantoms(tmp_path, 2, 32, 1, labelled=True)
    path = tmp_path / "labels.json"
    try_all(path, mutants(path.read_bytes(), 60, 2), use("IMAGES", tmp_path))


def test_csv(tmp_path):
    folder, _ = phantoms.write_isic_phantoms(tmp_path, 2, 0, 32, seed=1)
    path = Path(folder) / "X_Training_GroundTruth.csv"
    rows = [[str(pair.image), str(pair.mask)] for pair in find_pairs(folder, "Training")]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["img", "seg"], *([os.path.relpath(path, folder) for path in row] for row in rows)])
    try_all(path, mutants(path.read_bytes(), 60, 3), use("ISIC", folder))


@settings(max_examples=80, **QUIET)
@given(
    text=st.text(max_size=80)
    | st.lists(
        st.lists(
            st.text(max_size=8) | st.sampled_from(["img", "seg", "a.jpg", "../a.jpg", "/", "a\0b.jpg"]), max_size=3
        ),
        max_size=4,
    ).map(lambda rows: "img,seg\n" + "\n".join(",".join(row) for row in rows))
)
def test_any_text_as_csv(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "any_csv"
    folder.mkdir(exist_ok=True)
    (folder / "a.jpg").write_bytes(b"x")
    (folder / "X_Training_GroundTruth.csv").write_text(text, encoding="utf-8", errors="surrogatepass")
    outcome(lambda: find_pairs(str(folder), "Training"), repr(text))
    outcome(lambda: take_inventory(lambda: list_files(DataConfig("ISIC", str(folder)), "Training", True)), repr(text))


@settings(max_examples=200, **QUIET)
@given(text=st.text(max_size=20) | st.text("0123456789:,- evnodbraitumlKL+_", max_size=20))
def test_any_text_as_slices_and_labels(text):
    def select():
        kept = parse_slices(text).select(7, np.ones(7, bool), np.ones(7, bool))
        assert list(kept) == sorted(set(kept)) and all(0 <= z < 7 for z in kept)

    outcome(select, repr(text))
    outcome(lambda: split_names(text), repr(text))


FLAGS = [
    "--data_dir",
    "--data_name",
    "--slices",
    "--labels",
    "--image_size",
    "--batch_size",
    "--lr",
    "--ema_rate",
    "--num_channels",
    "--channel_mult",
    "--attention_resolutions",
    "--timestep_respacing",
    "--diffusion_steps",
    "--augment_flip",
    "--augment_rotation",
    "--seed",
    "--num_heads",
    "--preset",
    "--use_ddim",
    "--sampler",
    "--test_dir",
    "--jobs",
]
WORDS = ["True", "ISIC", "BRATS", "-1", "0", "1e999", "nan", "64", "ddim5", "1,2,3", ",", "both", "fast", ""]


@settings(max_examples=60, **QUIET)
@given(
    words=st.lists(
        st.sampled_from(FLAGS + WORDS) | st.text(st.characters(exclude_characters="\0"), max_size=6), max_size=6
    )
)
def test_any_flags(command, tmp_path_factory, words):
    folder = tmp_path_factory.getbasetemp() / "any_flags"
    if not folder.exists():
        phantoms.write_isic_phantoms(folder, 2, 0, 32, seed=1)
    before = sorted(folder.rglob("*"))
    for script, extra in (("segmentation_train", ["--dry_run=True"]), ("check_data", [])):
        with time_limit():
            code, _, errors = command(
                script,
                "--data_name",
                "ISIC",
                "--data_dir",
                folder / "Train",
                "--out_dir",
                folder / "out",
                *extra,
                *words,
            )
        assert code in (0, 2) and "Traceback" not in errors, (words, errors)
        if script == "segmentation_train":
            assert sorted(folder.rglob("*")) == before

"""Damaged files of every kind: each loads or is refused by one clear error, in time, and nothing half-written stays."""
import contextlib
import csv
import io
import json
import os
import signal
import traceback
import warnings
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import inner_mutants, mutants
from PIL import Image
from small import small_config
from test_commands import command  # noqa: F401

from guided_diffusion_core import checkpoint, evaluation, sampling
from guided_diffusion_core.config import DataConfig
from guided_diffusion_core.conversion import convert
from guided_diffusion_core.data import checking, list_files, list_truths, open_dataset, phantoms
from guided_diffusion_core.data.inventory import take_inventory
from guided_diffusion_core.data.isic import find_pairs
from guided_diffusion_core.data.labels import split_names
from guided_diffusion_core.data.slices import parse_slices
from guided_diffusion_core.data.truths import read_truth_masks
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.initialization import initial_state
from guided_diffusion_core.outputs import read_output
from guided_diffusion_core.state_shapes import state_shapes
from guided_diffusion_core.unet_plan import make_plan

SECONDS = 20  # after which an action on one damaged file, of milliseconds else, hangs
BRATS_CROP = np.s_[100:116, 120:136, 80:86]  # brain and tumour of BraTS2021_00000
QUIET = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """The libraries warn of what they find, each in its own way."""
    monkeypatch.setattr(checking, "tqdm", lambda items, **_: items)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def time_limit():
    def late(*_):
        raise TimeoutError(f"not done after {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def outcome(action, what):
    """"loaded" or "refused"; every other end of an action fails the test."""
    try:
        with time_limit():
            action()
        return "loaded"
    except UserError as error:
        assert str(error) and "Traceback" not in str(error)
        return "refused"
    except Exception:
        pytest.fail(f"{what}\n{traceback.format_exc()}")


def try_all(path, damaged, actions, both=True):
    """Put each damaged content in the place of a file and run the actions; some load and some are refused."""
    content, seen = path.read_bytes(), Counter()
    for done, mutant in damaged:
        path.write_bytes(mutant)
        for action in actions:
            seen[outcome(action, f"{path.name}: {done}")] += 1
    path.write_bytes(content)
    for action in actions:
        action()
    assert seen["refused"] and (seen["loaded"] or not both), seen


def use(name, folder, size=32):
    """What the commands do with a data set: train, sample without masks, score; and check it."""
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
    """The middle of a real case, a file for each modality; returns a modality's path and that of the labels."""
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


def pictures(shared_data):
    """Real ones, small: a colour photograph, an ultrasound picture and its mask."""
    source = shared_data / "REFUGE2/Train/Disc_Cup_Fovea_Illustration/T0001.jpg"
    photograph = Image.open(source).crop((900, 900, 948, 948))
    mask = Image.open(shared_data / "DDTI/Train/masks/1.PNG").convert("L")
    y, x = (int(values.mean()) for values in np.nonzero(np.asarray(mask) > 128))
    box = (x - 60, y - 24, x - 12, y + 24)
    return photograph, Image.open(shared_data / "DDTI/Train/images/1.PNG").crop(box), mask.crop(box)


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
            masks, damaged_images = mask, damaged
    assert masks.size == photograph.size
    try_all(image_path, damaged_images, use("IMAGES", tmp_path))


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
    content[42:48] = np.array([32767] * 3, "<i2").tobytes()  # dim[1] to dim[3]: 35 million million voxels
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
@given(text=st.text(max_size=80) | st.lists(
    st.lists(st.text(max_size=8) | st.sampled_from(["img", "seg", "a.jpg", "../a.jpg", "/", "a\0b.jpg"]), max_size=3),
    max_size=4).map(lambda rows: "img,seg\n" + "\n".join(",".join(row) for row in rows)))
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


FLAGS = ["--data_dir", "--data_name", "--slices", "--labels", "--image_size", "--batch_size", "--lr", "--ema_rate",
         "--num_channels", "--channel_mult", "--attention_resolutions", "--timestep_respacing", "--diffusion_steps",
         "--augment_flip", "--augment_rotation", "--seed", "--num_heads", "--preset", "--use_ddim", "--test_dir",
         "--jobs"]
WORDS = ["True", "ISIC", "BRATS", "-1", "0", "1e999", "nan", "64", "ddim5", "1,2,3", ",", "both", "fast", ""]


@settings(max_examples=60, **QUIET)
@given(words=st.lists(
    st.sampled_from(FLAGS + WORDS) | st.text(st.characters(exclude_characters="\0"), max_size=6), max_size=6))
def test_any_flags(command, tmp_path_factory, words):  # noqa: F811
    folder = tmp_path_factory.getbasetemp() / "any_flags"
    if not folder.exists():
        phantoms.write_isic_phantoms(folder, 2, 0, 32, seed=1)
    before = sorted(folder.rglob("*"))
    for script, own in (("segmentation_train", ["--dry_run=True"]), ("check_data", [])):
        with time_limit():
            code, _, errors = command(script, "--data_name", "ISIC", "--data_dir", folder / "Train", "--out_dir",
                                      folder / "out", *own, *words)
        assert code in (0, 2) and "Traceback" not in errors, (words, errors)
        if script == "segmentation_train":
            assert sorted(folder.rglob("*")) == before


@pytest.fixture(scope="module")
def weights():
    config = small_config(normalisation="RGB / 255", data_name="ISIC")
    arrays = initial_state(state_shapes(make_plan(config.model)), config.seed)
    return config, arrays


def test_checkpoints(weights, tmp_path):
    """Damage in the header, where the configuration and the places of the arrays are, and in the whole file."""
    config, arrays = weights
    small = {name: value for name, value in arrays.items() if value.size < 200}
    folder = checkpoint.save(tmp_path / "run", 3, config, {"model": small, "trainer": {"a": np.ones(9, np.float32)}})
    path = folder / "model.safetensors"
    header = int.from_bytes(path.read_bytes()[:8], "little")
    content = path.read_bytes()
    about_config = [(done, damaged + content[header:]) for done, damaged in mutants(content[:header], 90, 1)]
    expected = {name: value.shape for name, value in small.items()}

    def sample():
        trained, loaded = checkpoint.load(checkpoint.find(path))
        checkpoint.check_state(expected, loaded, path)
        make_plan(sampling.sampling_config(path, {}).model)

    def convert_it():
        out = tmp_path / "out.safetensors"
        try:
            convert.write(str(out), convert.read(str(path)))
        finally:
            assert [each.name for each in tmp_path.iterdir() if each.name not in ("run", out.name)] == []
            out.unlink(missing_ok=True)

    whole = checkpoint.load
    try_all(path, [*about_config, *mutants(content, 60, 2)], [sample])
    for done, damaged in [*about_config[:20], *mutants(content, 20, 3)]:
        path.write_bytes(damaged)
        outcome(convert_it, done)
        if damaged != content:
            with pytest.raises(UserError, match="bytes that are not those written"):
                checkpoint.find_whole("last", tmp_path / "run")
    path.write_bytes(content)
    assert whole(path)[0] == config


@pytest.mark.parametrize("value", [None, "x", [1], -7, 0, 1e30, True])
def test_any_value_of_a_setting_in_a_checkpoint(weights, tmp_path, monkeypatch, value):
    """A whole file whose configuration says something else of one setting."""
    written = []
    monkeypatch.setattr(checkpoint, "_metadata", lambda step, config, network: {
        "format": checkpoint.FORMAT, "step": "3", "config": json.dumps(written[-1]), "network": network})
    path, seen = tmp_path / "model.safetensors", Counter()
    for section, name in ((section, name) for section, tree in weights[0].to_dict().items()
                          for name in (tree if isinstance(tree, dict) else [None])):
        changed = weights[0].to_dict()
        if name is None:
            changed[section] = value
        else:
            changed[section][name] = value
        written.append(changed)
        path.write_bytes(checkpoint.to_bytes(3, weights[0], "model", {"a": np.ones(2, np.float32)}))

        def sample():
            config = sampling.sampling_config(path, {})
            make_plan(config.model)
            checkpoint.load_all(tmp_path)

        seen[outcome(sample, f"{section} {name}: {value}")] += 1
    assert seen["refused"] > 10


@pytest.mark.parametrize("name", ["contents.json", "../last"])
def test_pointers_and_contents_of_a_checkpoint(weights, tmp_path, name):
    folder = checkpoint.save(tmp_path, 3, weights[0], {"model": {"a": np.ones(9, np.float32)}})
    path = (folder / name).resolve()
    for done, damaged in mutants(path.read_bytes(), 40, 4):
        path.write_bytes(damaged)
        outcome(lambda: checkpoint.find_whole("last", tmp_path), done)
        outcome(lambda: checkpoint.load(checkpoint.find(tmp_path)), done)


def halves(images, keys):
    """A sampler without a network: two members, (2, N, 1, S, S)."""
    return np.stack([images[:, :1] > 0.4, images[:, :1] > 0.6]).astype(np.float32)


def is_finished(report):
    return report.exists() and json.loads(report.read_text())["finished"]


def assert_only_whole_files(folder):
    """Every file in a folder of masks can be read, and no temporary one is left."""
    for path in folder.iterdir() if folder.exists() else ():
        assert not path.name.startswith(".") and "writing" not in path.name
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            read_output(str(path))


def test_sampling_leaves_no_half_written_file(shared_data, tmp_path):
    photograph, _, _ = pictures(shared_data)
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        photograph.save(tmp_path / "images" / f"{number}.jpg")
    path, out_dir = tmp_path / "images" / "2.jpg", tmp_path / "out"

    def sample():
        dataset = open_dataset(DataConfig("IMAGES", str(tmp_path / "images")), 32, "Test", need_masks=False)
        sampling.run_sampling(halves, dataset, out_dir, 1, 0.5, "{}")

    content, seen = path.read_bytes(), Counter()
    with contextlib.redirect_stderr(io.StringIO()):
        for done, damaged in mutants(content, 40, 7):
            path.write_bytes(damaged)
            result = outcome(sample, done)
            seen[result] += 1
            assert_only_whole_files(out_dir)
            assert is_finished(out_dir / "run_report.json") == (result == "loaded")
            for left in out_dir.iterdir() if out_dir.exists() else ():
                left.unlink()
    assert seen["loaded"] and seen["refused"]


@pytest.mark.parametrize("kind", ["probability.tiff", "mask.png", "uncertainty.tiff", "volume"])
def test_predictions(tmp_path, kind):
    """What sampling wrote, damaged, and scored."""
    if kind == "volume":
        data, name = tmp_path / "data", "VOLUMES"
        phantoms.write_volume_phantoms(data, 1, (16, 16, 6), 1)
    else:
        data, name = tmp_path / "data", "IMAGES"
        phantoms.write_image_phantoms(data, 1, 32, 1)
    config, out_dir = DataConfig(name, str(data)), tmp_path / "out"
    with contextlib.redirect_stderr(io.StringIO()):
        sampling.run_sampling(halves, open_dataset(config, 32, "Test", need_masks=False), out_dir, 2, 0.5, "{}")
    if kind == "mask.png":
        next(out_dir.glob("*probability*")).unlink()
    path = next(out_dir.glob("*probability.nii.gz" if kind == "volume" else f"*{kind}"))
    damaged = [*mutants(path.read_bytes(), 60, 5)]
    if kind in ("mask.png", "volume"):
        damaged += inner_mutants(path.read_bytes(), 30, 5, "png" if kind == "mask.png" else "gzip")

    def score():
        summary = evaluation.evaluate(out_dir, list_truths(config, "Test"), 0.5)
        evaluation.write_summary(out_dir / "summary.json", summary)

    content = path.read_bytes()
    seen = Counter()
    for done, mutant in damaged:
        path.write_bytes(mutant)
        seen[outcome(score, done)] += 1
        for left in out_dir.glob("summary*"):
            json.loads(left.read_text())
            left.unlink()
        assert not list(out_dir.glob("*writing*"))
    path.write_bytes(content)
    assert seen["loaded"] and seen["refused"], seen

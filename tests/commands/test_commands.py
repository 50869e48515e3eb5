"""Test the public commands: their files, and one clear error with exit code 2 for each bad input."""

import json
import shutil

import pytest
from support.commands import assert_refused, files_below
from support.small import NETWORK, NETWORK_V1, small_config

from guided_diffusion_core import checkpoints
from guided_diffusion_core.data.phantoms import write_brats_phantom, write_isic_phantoms, write_refuge2_phantoms
from guided_diffusion_core.networks.registry import initial_state

SMALL = [text for name, value in NETWORK.items() if name != "in_ch" for text in (f"--{name}", str(value))]
SHORT = ["--batch_size", "2", "--max_steps", "1"]


@pytest.fixture
def isic(tmp_path):
    """Make folders (train, test) with four and two phantoms."""
    return write_isic_phantoms(tmp_path / "isic", 4, 2, 48, seed=1)


@pytest.fixture
def brats(tmp_path):
    return write_brats_phantom(tmp_path / "brats", "BraTS2021_00001", (40, 44, 6), seed=2)


@pytest.fixture
def trained(tmp_path):
    """Write an untrained checkpoint of the small network for colour images."""
    config = small_config(preset="fast", sample_steps=2, num_ensemble=2, normalisation="RGB / 255", data_name="ISIC")
    weights = initial_state(config.model, config.seed)
    checkpoints.save(tmp_path / "run", 1, config, {"model": weights})
    return tmp_path / "run"


def train(command, data_name, data_dir, out_dir, *flags):
    return command(
        "segmentation_train",
        "--data_name",
        data_name,
        "--data_dir",
        data_dir,
        "--out_dir",
        out_dir,
        *SMALL,
        *SHORT,
        *flags,
    )


class TestBadInput:
    def test_missing_folder(self, command, tmp_path):
        assert_refused(train(command, "ISIC", tmp_path / "nowhere", tmp_path / "out"), "--data_dir", "nowhere")
        assert files_below(tmp_path / "out") == []

    def test_empty_folder(self, command, tmp_path):
        (tmp_path / "empty").mkdir()
        assert_refused(train(command, "BRATS", tmp_path / "empty", tmp_path / "out"), "--data_dir", "empty folder")

    def test_volume_cut_in_half(self, command, brats, tmp_path):
        path = next(path for path in (tmp_path / "brats").rglob("*_t1ce.nii.gz"))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert_refused(train(command, "BRATS", tmp_path / "brats", tmp_path / "out"), path.name, "NIfTI")
        assert files_below(tmp_path / "out") == []

    def test_mask_of_another_shape(self, command, isic, tmp_path):
        masks = sorted((tmp_path / "isic" / "Train").rglob("*_Segmentation.png"))
        other = write_isic_phantoms(tmp_path / "other", 1, 0, 64, seed=1)[0]
        shutil.copy(next(tmp_path.joinpath(other).rglob("*_Segmentation.png")), masks[0])
        assert_refused(train(command, "ISIC", isic[0], tmp_path / "out"), masks[0].name, "pixels")

    def test_missing_modality(self, command, brats, tmp_path):
        next(path for path in (tmp_path / "brats").rglob("*_flair.nii.gz")).unlink()
        assert_refused(train(command, "BRATS", tmp_path / "brats", tmp_path / "out"), "BraTS2021_00001", "flair")

    def test_image_size_of_50(self, command, isic, tmp_path):
        assert_refused(
            train(command, "ISIC", isic[0], tmp_path / "out", "--image_size", "50"),
            "--image_size",
            "found 50",
            "multiple of 32",
        )

    def test_file_that_is_no_image(self, command, isic, tmp_path):
        image = next((tmp_path / "isic" / "Train").rglob("*.jpg"))
        image.write_text("this is no picture")
        assert_refused(train(command, "ISIC", isic[0], tmp_path / "out"), image.name)

    def test_output_below_a_file(self, command, isic, trained, tmp_path):
        (tmp_path / "file").write_text("in the way")
        assert_refused(train(command, "ISIC", isic[0], tmp_path / "file" / "out"), "--out_dir", "file")
        assert_refused(sample(command, isic[1], trained, tmp_path / "file" / "out"), "--out_dir", "file")
        assert (tmp_path / "file").read_text() == "in the way"

    def test_output_that_cannot_be_written(self, command, isic):
        assert_refused(train(command, "ISIC", isic[0], "/proc/medsegdiff"), "--out_dir", "/proc/medsegdiff")

    def test_training_into_a_bucket(self, command, isic):
        assert_refused(train(command, "ISIC", isic[0], "gs://bucket/run"), "--out_dir", "gs://bucket/run", "bucket")

    def test_one_example_per_batch_where_batch_norm_needs_two(self, command, isic, tmp_path):
        assert_refused(train(command, "ISIC", isic[0], tmp_path / "out", "--batch_size", "1"), "--batch_size")

    def test_unknown_flag(self, command, isic, tmp_path):
        assert_refused(
            train(command, "ISIC", isic[0], tmp_path / "out", "--num_chanels", "32"),
            "--num_chanels",
            "did you mean --num_channels?",
        )

    def test_missing_checkpoint(self, command, isic, tmp_path):
        assert_refused(sample(command, isic[1], tmp_path / "nowhere", tmp_path / "masks"), "--model_path", "nowhere")

    def test_checkpoint_of_another_architecture(self, command, isic, trained, tmp_path, backend):
        config = small_config(preset="fast", num_channels=64, normalisation="RGB / 255", data_name="ISIC")
        narrow = checkpoints.load(checkpoints.find(trained))[1]
        checkpoints.save(tmp_path / "mixed", 1, config, {"model": narrow})
        assert_refused(
            sample(command, isic[1], tmp_path / "mixed", tmp_path / "masks", "--backend", backend.name),
            "model.safetensors",
            "of another shape",
            "time_embed.0.weight",
        )
        assert files_below(tmp_path / "masks") == []

    def test_flag_that_contradicts_the_checkpoint(self, command, isic, trained, tmp_path):
        assert_refused(
            sample(command, isic[1], trained, tmp_path / "masks", "--num_channels", "64"),
            "--num_channels",
            "found 64",
            "expected 32",
        )
        assert_refused(
            sample(command, isic[1], trained, tmp_path / "masks", "--preset", "original", "--predict_xstart", "False"),
            "--predict_xstart",
            "found False",
        )

    def test_data_that_the_network_was_not_trained_for(self, command, brats, trained, tmp_path):
        assert_refused(
            sample(command, tmp_path / "brats", trained, tmp_path / "masks", "--data_name", "BRATS"),
            "--data_name",
            "4 image channels",
        )

    def test_missing_predictions(self, command, isic, tmp_path):
        (tmp_path / "masks").mkdir()
        (tmp_path / "masks" / "notes.txt").write_text("no mask here")
        assert_refused(
            command("segmentation_env", "--inp_pth", tmp_path / "masks", "--out_pth", isic[1], "--data_name", "ISIC"),
            "ISIC_0000004",
            "ISIC_0000005",
        )
        assert files_below(tmp_path / "masks") == [(tmp_path / "masks" / "notes.txt").relative_to(tmp_path / "masks")]


def sample(command, data_dir, model_path, out_dir, *flags):
    return command(
        "segmentation_sample", "--data_dir", data_dir, "--model_path", model_path, "--out_dir", out_dir, *flags
    )


def test_dry_run_prints_the_configuration_and_writes_nothing(command, isic, tmp_path):
    code, printed, _ = train(command, "ISIC", isic[0], tmp_path / "out", "--dry_run", "--preset", "fast")
    resolved = json.loads(printed)
    assert code == 0 and not (tmp_path / "out").exists()
    assert resolved["model"]["in_ch"] == 4 and resolved["examples"] == 4
    assert resolved["diffusion"]["predict_xstart"] is True and resolved["training"]["max_steps"] == 1


@pytest.mark.parametrize("version", ["new", "1"])
def test_train_sample_and_score(command, backend, isic, tmp_path, version):
    """Run the three commands in a row, and sample images without masks next to them."""
    multipliers = NETWORK_V1["channel_mult"] if version == "1" else NETWORK["channel_mult"]
    code, _, errors = train(
        command,
        "ISIC",
        isic[0],
        tmp_path / "out",
        "--backend",
        backend.name,
        "--preset",
        "fast",
        "--version",
        version,
        "--channel_mult",
        multipliers,
    )
    assert code == 0, errors
    trained_on = json.loads((tmp_path / "out" / "config.json").read_text())["device"]
    assert trained_on.startswith("cpu (") and f"device: {trained_on}\n" in errors
    assert [json.loads(line)["step"] for line in (tmp_path / "out" / "progress.jsonl").read_text().splitlines()] == [1]
    images = tmp_path / "images"
    shutil.copytree(next((tmp_path / "isic" / "Test").glob("*_Data")), images)
    code, _, errors = sample(
        command,
        images,
        tmp_path / "out",
        tmp_path / "masks",
        "--backend",
        backend.name,
        "--num_ensemble",
        "2",
        "--sample_steps",
        "2",
    )
    assert code == 0, errors
    names = {path.name for path in (tmp_path / "masks").iterdir()}
    kinds = ("mask.png", "probability.tiff", "uncertainty.tiff", "overlay.png", "uncertainty_map.png")
    assert names == {"run_report.json"} | {f"ISIC_000000{n}_{kind}" for n in (4, 5) for kind in kinds}
    report = json.loads((tmp_path / "masks" / "run_report.json").read_text())
    assert report["device"] == trained_on and f"device: {trained_on}\n" in errors
    assert report["cases"] == 2 and report["sampling"]["sample_steps"] == 2 and report["sampler_seconds"] > 0
    code, printed, errors = command(
        "segmentation_env", "--inp_pth", tmp_path / "masks", "--out_pth", isic[1], "--data_name", "ISIC"
    )
    assert code == 0, errors
    summary = json.loads((tmp_path / "masks" / "summary.json").read_text())
    assert summary["n_cases"] == 2 and "ISIC_0000004" in printed


def test_two_labels_in_parts_and_continued(command, tmp_path):
    """Train, sample in two parts, continue and score two masks, the cup and the disc of the eye."""
    write_refuge2_phantoms(tmp_path / "data", 3, 48, seed=1)
    code, _, errors = train(command, "REFUGE2", tmp_path / "data", tmp_path / "run", "--preset", "fast")
    assert code == 0, errors
    settings = ("--num_ensemble", "2", "--sample_steps", "2", "--fusion", "staple", "--num_parts", "2")
    for part_id in ("1", "0"):
        code, _, errors = sample(
            command, tmp_path / "data", tmp_path / "run", tmp_path / "masks", *settings, "--part_id", part_id
        )
        assert code == 0, errors
    masks = sorted((tmp_path / "masks").glob("*_mask.png"))
    assert len(masks) == 6 and sum(path.name.endswith("_cup_mask.png") for path in masks) == 3
    assert {path.name for path in (tmp_path / "masks").glob("run_report*")} == {
        "run_report_part_0_of_2.json",
        "run_report_part_1_of_2.json",
    }
    before = masks[0].read_bytes()
    masks[0].unlink()
    code, _, errors = sample(
        command, tmp_path / "data", tmp_path / "run", tmp_path / "masks", *settings[:-2], "--continue"
    )
    assert code == 0 and "2 are finished" in errors, errors
    assert masks[0].read_bytes() == before
    report = json.loads((tmp_path / "masks" / "run_report.json").read_text())
    assert report["labels"] == ["disc", "cup"] and "STAPLE" in report["definitions"]["probability"]
    assert_refused(
        sample(command, tmp_path / "data", tmp_path / "run", tmp_path / "masks", *settings[:-2], "--num_ensemble", "3"),
        "--num_ensemble",
        "found 3; expected 2",
    )
    assert_refused(
        sample(command, tmp_path / "data", tmp_path / "run", tmp_path / "new", "--part_id", "1"), "--part_id"
    )
    code, printed, errors = command(
        "segmentation_env", "--inp_pth", tmp_path / "masks", "--out_pth", tmp_path / "data", "--data_name", "REFUGE2"
    )
    assert code == 0 and "cup" in printed, errors

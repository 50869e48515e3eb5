"""Test the validation sets: shares and folds of the patients, folders named val, and what is refused."""

import itertools
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from support.small import NETWORK, small_config

from guided_diffusion_core import training
from guided_diffusion_core.config import resolve
from guided_diffusion_core.data import open_dataset, phantoms
from guided_diffusion_core.data.patients import patient_rule
from guided_diffusion_core.data.walk import noting_left_out
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.training.sets import held_out_patients

SMALL_FLAGS = [text for name, value in NETWORK.items() if name != "in_ch" for text in (f"--{name}", str(value))]
# names of cases by patient, for some data sets
DATA_SETS = {
    "BraTS 2023": {"BraTS-GLI-00000": ["-000", "-001"], "BraTS-GLI-00002": ["-000"]},
    "BraTS 2020": {"BraTS20_Training_001": [""], "BraTS20_Training_002": [""]},
    "slices of TCGA": {"TCGA_CS_4941": ["_19960909_12", "_19960909_2"], "TCGA_HT_8114": ["_19981030_10"]},
    "slices": {"patient001": ["_slice_03", "_slice_04"], "patient002": ["_slice_03"]},
    "years": {"2021_P1": ["_1", "_2"], "2021_P2": ["_1"]},
    "ISIC": {"ISIC_0000000": [""], "ISIC_0000001": [""]},
    "eyes": {"P012": ["_left", "_right"], "P013": ["_left"]},
    "numbers": {"1": ["_1", "_2"], "12": ["_1"]},
    "names": {"Anna": [""], "Ben": [""], "Ben 2": [""]},
    "with an odd name": {"BraTS20_Training_001": [""], "BraTS20_Training_002": [""], "odd": [""]},
    "Chinese": {"病例12": ["", "_左"], "病例13": ["_左"]},
}


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_patients_in_names(data_set):
    patients = {f"{patient}{rest}": patient for patient, rests in DATA_SETS[data_set].items() for rest in rests}
    rule = patient_rule(patients)
    assert {name: rule(name) for name in patients} == patients


@hypothesis.given(st.lists(st.text("aB_-. 01", min_size=1, max_size=8), min_size=2, unique=True))
def test_patients_of_any_names(names):
    rule = patient_rule(names)
    assert all(name.startswith(rule(name)) for name in names)
    assert len(set(map(rule, names))) > 1, "different names are never all of one patient"


def patient_of(name):
    """Return the patient in a name of `names_of`."""
    return name.rsplit("_", 1)[0]


def names_of(patients, cases):
    return [f"P_{patient:03d}_{case}" for patient in range(patients) for case in range(cases)]


@pytest.mark.parametrize("patients, cases", [(5, 1), (7, 3), (30, 2)])
def test_folds_are_five_parts_of_the_patients(patients, cases):
    names = names_of(patients, cases)
    folds = [held_out_patients(names, resolve({"fold": fold}).training, 7) for fold in range(5)]
    assert sorted(itertools.chain(*folds)) == sorted({patient_of(name) for name in names})
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    again = [held_out_patients(names[::-1], resolve({"fold": fold}).training, 7) for fold in range(5)]
    assert again == folds
    assert folds != [held_out_patients(names, resolve({"fold": fold}).training, 8) for fold in range(5)]


@pytest.mark.parametrize("share, count", [(0.2, 4), (0.01, 1), (0.99, 19), (0.5, 10)])
def test_a_share_of_the_patients(share, count):
    held = held_out_patients(names_of(20, 3), resolve({"val_share": share}).training, 0)
    assert len(held) == count and held == held_out_patients(names_of(20, 1), resolve({"val_share": share}).training, 0)


@pytest.mark.parametrize(
    "settings, names, message",
    [
        ({"val_share": 0.2}, ["2021_1"], "--val_share: found 1 cases of 1 patients .2021_1;"),
        ({"fold": 0}, names_of(4, 3), "--fold: found 12 cases of 4 patients"),
        ({"fold": 4}, ["a"], "expected at least 5 patients"),
    ],
)
def test_too_few_patients(settings, names, message):
    with pytest.raises(UserError, match=message):
        held_out_patients(names, resolve(settings).training, 0)


@pytest.mark.parametrize(
    "settings",
    [{"val_share": 0.2, "fold": 1}, {"val_share": 0.2, "val_dir": "x"}, {"fold": 0, "val_dir": "x"}],
)
def test_two_sources_of_the_validation_set(settings):
    with pytest.raises(UserError, match="the validation set: found --.* and --"):
        resolve(settings)


@pytest.mark.parametrize("settings", [{"val_share": 1.0}, {"val_share": -0.1}, {"fold": 5}, {"fold": -2}])
def test_values_out_of_range(settings):
    with pytest.raises(UserError, match="--(val_share|fold)"):
        resolve(settings)


def write_pictures(folder, names):
    for kind, value in (("images", 90), ("masks", 255)):
        (folder / kind).mkdir(parents=True)
        for name in names:
            Image.fromarray(np.full((32, 32), value, np.uint8)).save(folder / kind / f"{name}.png")


def sets(folder, data_name="IMAGES", **settings):
    """Return the datasets to train and to validate on, the second one with its truths, and what is left out."""
    config = small_config(data_name=data_name, data_dir=str(folder), max_steps=10, **{"val_interval": 5, **settings})
    with noting_left_out() as left_out:
        dataset = open_dataset(config.data, 32, "Training", need_masks=True)
        dataset, cases = training.split_sets(config, dataset)
    return dataset, cases, left_out.kinds()


def names(dataset):
    return [case.name for case in dataset.cases()]


@pytest.mark.parametrize("settings", [{"val_share": 0.3}, {"fold": 2}])
def test_no_patient_is_in_both_sets(tmp_path, settings, capsys):
    write_pictures(tmp_path, names_of(10, 3))
    train, cases, _ = sets(tmp_path, **settings)
    patients = [{patient_of(name) for name in names(dataset)} for dataset in (train, cases.dataset)]
    assert not patients[0] & patients[1] and sorted(names(train) + names(cases.dataset)) == sorted(names_of(10, 3))
    assert [truth.name for truth in cases.truths] == names(cases.dataset)
    assert len(train) == len(names(train)) and train[len(train) - 1].case == names(train)[-1]
    with pytest.raises(IndexError):
        train[len(train)]
    for dataset in (train, cases.dataset):
        assert [dataset[index].case for case in dataset.cases() for index in case.indices] == names(dataset)
    said = capsys.readouterr().err
    assert f"{len(names(cases.dataset))} cases every 5 steps, held out by" in said
    assert "in which the names differ ('P_000' of 'P_000_" in said


def test_volumes_are_held_out_whole(tmp_path):
    phantoms.write_volume_phantoms(tmp_path, 5, (16, 16, 6), 1)
    train, cases, _ = sets(tmp_path, "VOLUMES", fold=1, val_slices="odd", slices="even")
    assert (len(names(train)), len(train)) == (4, 12)
    assert len(names(cases.dataset)) == 1 and cases.dataset.cases()[0].slices == (1, 3, 5)
    for dataset in (train, cases.dataset):
        assert [index for case in dataset.cases() for index in case.indices] == list(range(len(dataset)))
        for case in dataset.cases():
            assert [dataset[index].slice_index for index in case.indices] == list(case.slices)


class TestFolders:
    @pytest.mark.parametrize("folder", ["val", "Validation_2020", "images_val"])
    def test_they_are_the_validation_set(self, tmp_path, folder):
        write_pictures(tmp_path / "train", ["a", "b"])
        if folder == "images_val":
            write_pictures(tmp_path / "other", ["c"])
            (tmp_path / "other" / "images").rename(tmp_path / "images_val")
            (tmp_path / "other" / "masks").rename(tmp_path / "masks_val")
        else:
            write_pictures(tmp_path / folder, ["c"])
        write_pictures(tmp_path / "test", ["d"])
        train, cases, left_out = sets(tmp_path)
        assert (names(train), names(cases.dataset), list(left_out)) == (["a", "b"], ["c"], ["folder named test"])

    def test_brats(self, tmp_path):
        for place, name in (("train", "A"), ("val", "B"), ("val", "C")):
            phantoms.write_brats_phantom(tmp_path / place, name, (16, 16, 4), 1)
        train, cases, left_out = sets(tmp_path, "BRATS", val_cases=1)
        assert (names(train), names(cases.dataset), left_out) == (["A"], ["B"], {})

    def test_nnunet(self, tmp_path):
        phantoms.write_nnunet_phantoms(tmp_path, 2, 1, (16, 16, 4), 1)
        for kind in ("images", "labels"):
            (tmp_path / f"{kind}Ts").rename(tmp_path / f"{kind}Va")
        _, cases, _ = sets(tmp_path, "NNUNET")
        assert len(names(cases.dataset)) == 1

    def test_none(self, tmp_path):
        write_pictures(tmp_path, ["Valencia_1", "Valencia_2"])
        assert sets(tmp_path)[1] is None

    def test_a_set_without_masks_does_not_stop_the_training(self, tmp_path, capsys):
        write_pictures(tmp_path / "train", ["a"])
        write_pictures(tmp_path / "val", ["b"])
        (tmp_path / "val" / "masks" / "b.png").unlink()
        _, cases, left_out = sets(tmp_path)
        assert cases is None and left_out == {"folder named val": ["val"]}
        assert (
            "the folder named val is not used: " in (said := capsys.readouterr().err) and "without a mask (b)" in said
        )

    def test_a_training_that_ends_before_its_first_validation(self, tmp_path, capsys):
        write_pictures(tmp_path / "train", ["a"])
        write_pictures(tmp_path / "val", ["b"])
        assert sets(tmp_path, val_interval=1000)[1] is None
        assert "ends at step 10, before the first validation (--val_interval 1000)" in capsys.readouterr().err

    def test_another_source_counts_before_them(self, tmp_path):
        write_pictures(tmp_path / "train", names_of(5, 1))
        write_pictures(tmp_path / "val", ["b"])
        assert names(sets(tmp_path, fold=0)[1].dataset)[0].startswith("P_")
        write_pictures(tmp_path / "other", ["c"])
        assert names(sets(tmp_path, val_dir=str(tmp_path / "other"))[1].dataset) == ["c"]


def test_a_training_records_its_sets_and_keeps_them_when_it_goes_on(command, tmp_path):
    write_pictures(tmp_path / "data", names_of(5, 2))

    def train(*more):
        return command("segmentation_train", "--data_dir", tmp_path / "data", "--out_dir", tmp_path / "run", *more)

    code, out, errors = train(
        *SMALL_FLAGS, "--fold", "1", "--max_steps", "1", "--val_interval", "1", "--batch_size", "2"
    )
    assert code in (0, None), errors
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert sorted(split["training"] + split["validation"]) == names_of(5, 2)
    assert (
        f'"examples": {len(split["training"])}' in out and "val_dice" in (tmp_path / "run" / "progress.csv").read_text()
    )
    scored = json.loads((tmp_path / "run" / "validation" / "summary.json").read_text())
    assert [row["case"] for row in scored["metric_per_case"]] == split["validation"]
    code, _, errors = train("--resume", "last", "--max_steps", "2")
    assert code in (0, None), errors
    assert json.loads((tmp_path / "run" / "split.json").read_text()) == split
    code, _, errors = train("--resume", "last", "--max_steps", "3", "--fold", "3")
    assert code == 2 and "--fold: found 3" in errors

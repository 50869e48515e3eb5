"""Test sets whose volumes are stored in several orientations: one for the network, each its own for the results."""

import json

import nibabel as nib
import numpy as np
import pytest
from support.agreement import agree
from support.small import small_config

from guided_diffusion_core import checkpoints, training
from guided_diffusion_core.config import DataConfig, from_dict, resolve
from guided_diffusion_core.data import list_files, list_truths, open_dataset
from guided_diffusion_core.data.check.checking import Check
from guided_diffusion_core.data.check.inventory import take_inventory
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.evaluation import evaluate
from guided_diffusion_core.sampling import sampling_config
from guided_diffusion_core.sampling.folder import as_sampled
from guided_diffusion_core.sampling.run import SamplingRun

SHAPE = (24, 20, 6)
AFFINE = nib.affines.from_matvec(np.diag([1.0, 1, 3]), [-12, -10, -9])


def head(seed=0):
    """Return an image and its labels; the labelled box is bright."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:12, 8:14, 2:5] = 1
    image = np.random.default_rng(seed).normal(100, 5, SHAPE) + 200 * labels
    return image.astype(np.float32), labels


def save(path, values, code):
    """Save a volume of RAS in another orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = nib.orientations.axcodes2ornt(code)
    change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), target)
    nib.save(nib.Nifti1Image(values, AFFINE).as_reoriented(change), path)


def write(folder, codes):
    """Write one head in several orientations; the names of the cases keep their order."""
    image, labels = head()
    for number, code in enumerate(codes):
        save(folder / "images" / f"{number}{code}.nii.gz", image, code)
        save(folder / "masks" / f"{number}{code}.nii.gz", labels, code)
    return DataConfig("VOLUMES", str(folder))


def bright(images, keys):
    """Sample without a network: what is bright, by one member."""
    return (images[None, :, :1] > 1).astype(np.float32)


@pytest.mark.parametrize(
    "codes, seen",
    [
        (("RAS", "LPS", "PIR"), "RAS"),
        (("PIR", "LAS", "LAS"), "LAS"),
        (("SLA", "SLA", "RAS"), "SLA"),
        (("ASL",) * 3, "ASL"),
    ],
)
def test_a_network_sees_one_head_in_one_way(codes, seen, tmp_path):
    """All examples of a mixed set are those of a set that is stored in one orientation, to the bit."""
    mixed = open_dataset(write(tmp_path / "mixed", codes), 32, "Training", need_masks=True)
    alike = open_dataset(write(tmp_path / "alike", (seen,) * 3), 32, "Training", need_masks=True)
    assert mixed.orientation == alike.orientation == seen and len(mixed) == len(alike)
    for index in range(len(mixed)):
        np.testing.assert_array_equal(mixed[index].image, alike[index].image)
        np.testing.assert_array_equal(mixed[index].mask, alike[index].mask)
        assert mixed[index].slice_index == alike[index].slice_index
    assert alike.remarks == ()
    turned = [f"{number}{code}" for number, code in enumerate(codes) if code != seen]
    for note in mixed.remarks:
        assert f"{len(turned)} of 3 volumes are turned to {seen}" in note and f"({', '.join(turned)})" in note
    assert len(mixed.remarks) == bool(turned)


@pytest.mark.parametrize("slices", ["all", "1:4", "tumour", "brain,even"])
def test_results_have_the_source_s_grid_and_are_the_same_head(slices, tmp_path):
    """Undo the change of axes exactly: affine and shape of each source, and one mask for one head; score it so."""
    config = write(tmp_path / "data", ("RAS", "LPS", "PIR", "AIL"))
    config = DataConfig(config.data_name, config.data_dir, slices=slices)
    dataset = open_dataset(config, 32, "Test", need_masks=False)
    settings = {"data": {"slices": slices, "orientation": dataset.orientation}}
    SamplingRun(dataset, tmp_path / "out", 4, 0.5, settings).run(bright)
    canonical = []
    for source in sorted((tmp_path / "data" / "images").iterdir()):
        image = nib.load(source)
        for kind in ("mask", "probability", "uncertainty"):
            found = nib.load(tmp_path / "out" / source.name.replace(".nii.gz", f"_{kind}.nii.gz"))
            assert found.shape == image.shape
            np.testing.assert_array_equal(found.affine, image.affine)
            if kind == "mask":
                canonical.append(np.asarray(nib.as_closest_canonical(found).dataobj))
    assert canonical[0].any()
    for mask in canonical[1:]:
        np.testing.assert_array_equal(mask, canonical[0])
    scored, _ = as_sampled(DataConfig("VOLUMES", config.data_dir), tmp_path / "out")
    summary = evaluate(tmp_path / "out", list_truths(scored), 0.5)
    first, *others = summary["metric_per_case"]
    assert first["metrics"]["mask"]["Dice"] > 0.6
    for row in others:
        assert (row["metrics"], row["slices"], row["per_slice"]) == (
            first["metrics"],
            first["slices"],
            first["per_slice"],
        )


def test_a_training_records_the_orientation_and_sampling_follows_it(tmp_path):
    """Data of other orientations than the training's are turned to it; the command says which cases."""
    data = write(tmp_path / "train", ("LPS", "LPS", "RAS"))
    config = resolve({"data_name": data.data_name, "data_dir": data.data_dir, "network": "medsegdiff_new"})
    dataset = open_dataset(config.data, 32, "Training", need_masks=True)
    config = training.fit_to_data(config, dataset, in_ch_given=False)
    assert config.data.orientation == "LPS"
    path = checkpoints.save(tmp_path / "run", 1, config, {"model": {}, "trainer": {}}) / "model.safetensors"
    sampled = sampling_config(path, {"data_dir": write(tmp_path / "test", ("PIR",) * 2).data_dir})
    assert sampled.data.orientation == "LPS"
    cases = open_dataset(sampled.data, 32, "Test", need_masks=False)
    assert cases.orientation == "LPS" and "2 of 2 volumes are turned to LPS" in cases.remarks[0]
    np.testing.assert_array_equal(cases[0].image, dataset[0].image)


def test_checkpoints_of_before_see_each_volume_as_stored(tmp_path):
    """A configuration without an orientation comes from a version that turned nothing."""
    tree = json.loads(json.dumps(small_config(data_name="VOLUMES", orientation="RAS").to_dict()))
    assert from_dict(tree).data.orientation == "RAS"
    del tree["data"]["orientation"]
    older = from_dict(tree).replace(data_dir=write(tmp_path, ("RAS", "LPS", "PIR")).data_dir)
    assert older.data.orientation == "stored"
    dataset = open_dataset(older.data, 32, "Test", need_masks=False)
    assert [case.seen_shape for case in dataset.cases()] == [case.shape for case in dataset.cases()]
    assert "used as stored, 1 in RAS, 1 in LPS, 1 in PIR" in dataset.remarks[0]


@pytest.mark.parametrize("value", ["", "canonical", "RAL", "RA", "RAS+", "ras"])
def test_malformed_orientations(value):
    with pytest.raises(UserError, match="--orientation: found"):
        resolve({"orientation": value})
    assert resolve({"orientation": "IPR"}).data.orientation == "IPR"


def test_a_chosen_orientation_chooses_the_axis_of_the_slices(tmp_path):
    data = write(tmp_path, ("RAS", "PIR"))
    dataset = open_dataset(DataConfig("VOLUMES", data.data_dir, orientation="SAR"), 32, "Training", need_masks=True)
    assert [len(case.slices) for case in dataset.cases()] == [SHAPE[0], SHAPE[0]]
    assert sum(dataset[index].mask.any() for index in range(len(dataset))) == 2 * 6  # the box is 6 voxels wide


def test_volumes_without_a_place_are_never_turned(tmp_path):
    """A header with the codes 0 says nothing of the axes, even beside others that do."""
    data = write(tmp_path, ("LPS", "LPS"))
    image, labels = head()
    for folder, values in (("images", image), ("masks", labels)):
        nib.save(nib.Nifti1Image(values, None), tmp_path / folder / "2nowhere.nii.gz")
    dataset = open_dataset(data, 32, "Training", need_masks=True)
    assert dataset.orientation == "LPS" and dataset.remarks == ()
    assert all(case.turn.is_identity for case in dataset.cases())


def test_check_data_lists_the_cases_of_each_orientation(tmp_path):
    data = write(tmp_path, ("RAS", "LPS", "LPS"))
    assert agree(tmp_path, "VOLUMES") == []
    check = Check({"train": take_inventory(lambda: list_files(data, "Training", True))}, 1)
    [problem] = [problem for problem in check.problems if problem.kind == "orientation"]
    assert problem.severity == "warning" and "RAS (0RAS); LPS (1LPS, 2LPS)" in problem.found

"""Test the folder of a sampling run: killed and continued, shared among processes, never mixed with another run."""

import json
import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support.backends import ROOT
from support.small import RandomDataset

from guided_diffusion_core.config import resolve
from guided_diffusion_core.data import open_dataset
from guided_diffusion_core.data.dataset import Case
from guided_diffusion_core.data.phantoms import write_brats_phantom
from guided_diffusion_core.errors import UserError
from guided_diffusion_core.noise import NoiseTape
from guided_diffusion_core.results.outputs import CaseWriter, require_names
from guided_diffusion_core.sampling.folder import part_of, report_path, require_same_run, write_report
from guided_diffusion_core.sampling.run import SamplingRun

SETTINGS = {
    "backend": "none",
    "seed": 1,
    "batch_size": 4,
    "sampling": {"eta": 0.0, "num_ensemble": 3},
    "out_dir": "here",
    "model_path": "run",
    "model_sha256": "ab",
    "images": 11,
}


def drawn(images, keys):
    """Sample without a network: three smooth members with one mask channel, which depend only on the keys."""
    members = [[NoiseTape(0).normal("a", (1, 32, 32), case=key, member=m) for key in keys] for m in range(3)]
    return np.float32(members) * 0.5 + 0.5


class Interrupting:
    """The sampler `drawn`, with Ctrl-C after some batches; `batches` records the keys."""

    def __init__(self, after=None):
        self.after = after
        self.batches = []

    def __call__(self, images, keys):
        if len(self.batches) == self.after:
            raise KeyboardInterrupt
        self.batches.append(tuple(keys))
        return drawn(images, keys)


class Patients(RandomDataset):
    """Five cases, volumes of 1 to 4 slices and one image, in order."""

    SLICES = (2, 1, 4, 3)

    def __init__(self):
        super().__init__(length=11, in_channels=4)
        self.owners = [(f"v{k}", z) for k, depth in enumerate(self.SLICES) for z in range(depth)] + [("picture", None)]

    def __getitem__(self, index):
        example = super().__getitem__(index)
        name, z = self.owners[index]
        return type(example)(example.image, example.mask, name, z)

    def cases(self):
        header = nib.Nifti1Header()
        found = []
        start = 0
        for k, depth in enumerate(self.SLICES):
            indices = tuple(range(start, start + depth))
            found.append(Case(f"v{k}", indices, (36, 40, 5), tuple(range(depth)), np.eye(4), header))
            start += depth
        return [*found, Case("picture", (start,), (40, 50))]


def run(out_dir, sampler=drawn, dataset=None, settings=SETTINGS, batch_size=4, **more):
    SamplingRun(dataset or Patients(), out_dir, batch_size, 0.5, settings, **more).run(sampler)
    return out_dir


def contents(folder):
    """Return a dict: name -> bytes of all files except the reports, which hold times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("run_report")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the files of an uninterrupted run."""
    files = contents(run(tmp_path_factory.mktemp("whole")))
    kinds = ("mask.nii.gz", "probability.nii.gz", "uncertainty.nii.gz", "overlay.png", "uncertainty_map.png")
    expected = {f"v{k}_{kind}" for k in range(4) for kind in kinds}
    assert files.keys() == expected | {
        f"picture_{kind}"
        for kind in ("mask.png", "probability.tiff", "uncertainty.tiff", "overlay.png", "uncertainty_map.png")
    }
    return files


def test_ctrl_c_leaves_what_continue_goes_on_with(tmp_path, whole, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupting(after=2))
    assert "--continue goes on" in capsys.readouterr().err
    written = contents(tmp_path)
    assert {name: whole[name] for name in written} == written and {name[:2] for name in written} == {"v0", "v1", "v2"}
    report = json.loads((tmp_path / "run_report.json").read_text())
    assert report["finished"] is False and report["seed"] == 1
    sampler = Interrupting()
    run(tmp_path, sampler, resume=True)
    assert contents(tmp_path) == whole
    # what is left, in the batches that it had; the last one is filled up
    assert sampler.batches == [("v2/1", "v2/2", "v2/3", "v3/0"), ("v3/1", "v3/2", "picture", "v3/1")]
    report = json.loads((tmp_path / "run_report.json").read_text())
    assert report["finished"] is True and (report["cases"], report["cases_found_finished"]) == (5, 3)


def test_a_mask_that_is_not_finite_is_refused_before_its_files(tmp_path):
    def spoiled(images, keys):
        members = drawn(images, keys)
        if "picture" in keys:
            members[1, keys.index("picture"), 0, 3, 4] = np.nan
        return members

    with pytest.raises(
        UserError, match="sampling of picture: found values in the mask that are not finite.*--sampler ddim"
    ):
        run(tmp_path, spoiled)
    assert not [name for name in contents(tmp_path) if name.startswith("picture")]


def test_nothing_is_sampled_twice(tmp_path, whole):
    run(tmp_path)
    sampler = Interrupting()
    run(tmp_path, sampler, resume=True)
    assert sampler.batches == [] and contents(tmp_path) == whole


@pytest.mark.parametrize("lost", ["v2_mask.nii.gz", "picture_mask.png"])
def test_a_case_without_its_mask_is_sampled_again(tmp_path, whole, lost):
    """Remove the mask, which is written last: a kill between the files of a case leaves no mask."""
    run(tmp_path)
    (tmp_path / lost).unlink()
    (tmp_path / lost.replace("mask", "probability").replace(".png", ".tiff")).write_bytes(b"torn")
    run(tmp_path, resume=True)
    assert contents(tmp_path) == whole


KILLED = """
import sys, time
sys.path[:0] = ["tests", "tests/sampling", "."]
from pathlib import Path
import test_sampling_folder as tests

def slow(images, keys):
    time.sleep(0.2)
    return tests.drawn(images, keys)

tests.run(Path(sys.argv[1]), slow, batch_size=1, resume=True)
"""


def test_kill_9_and_continue_give_the_files_of_an_uninterrupted_run(tmp_path):
    """Kill the run twice, each time as soon as another case is complete."""
    alone = contents(run(tmp_path / "alone", batch_size=1))
    folder = tmp_path / "killed"
    for killed_at in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(folder.glob("*_mask*")) if folder.exists() else []) < killed_at:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert len(list(folder.glob("*_mask*"))) < 5
    run(folder, batch_size=1, resume=True)
    assert contents(folder) == alone


KILLED_WHILE_IT_WRITES = """
import os, signal, sys
sys.path[:0] = ["tests", "tests/sampling", "."]
from pathlib import Path
import test_sampling_folder as tests

rename = os.replace
def killing(source, target):
    if target.endswith("v2_mask.nii.gz"):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

os.replace = killing
tests.run(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("resume", [True, False])
def test_the_half_written_file_of_a_killed_process_is_removed(tmp_path, whole, resume):
    """Require that files of a running process, or of another machine, stay."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_IT_WRITES, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = (path for path in tmp_path.iterdir() if ".writing-" in path.name)
    assert left.name.startswith("v2_mask.nii.gz.writing-")
    start, dead = left.name.rpartition("-")[::2]
    others = {f"{start}-{os.getppid()}", f"v1_mask.nii.gz.writing-of-another.machine-{dead}", "notes.writing-down"}
    for name in others:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / f"{start}-{os.getpid()}").write_bytes(b"of an earlier process whose number is this one's")
    run(tmp_path, resume=resume)
    found = contents(tmp_path)
    assert found.keys() == whole.keys() | others and {name: found[name] for name in whole} == whole


@pytest.mark.parametrize("num_parts", [2, 3, 7])
def test_parts_together_are_the_whole(tmp_path, whole, num_parts):
    for part_id in reversed(range(num_parts)):
        run(tmp_path, part_id=part_id, num_parts=num_parts)
    assert contents(tmp_path) == whole
    reports = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("run_report*")}
    assert reports.keys() == {f"run_report_part_{k}_of_{num_parts}.json" for k in range(num_parts)}
    assert sum(report["cases"] for report in reports.values()) == 5


def test_every_case_belongs_to_one_part():
    cases = list(range(10))
    assert [part_of(cases, k, 3) for k in range(3)] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    for part_id, num_parts, flag in ((0, 0, "--num_parts"), (3, 3, "--part_id"), (-1, 2, "--part_id")):
        with pytest.raises(UserError, match=flag):
            part_of(cases, part_id, num_parts)


class TestOtherSettings:
    """A folder with masks accepts only the settings of its run, with and without --continue."""

    @pytest.mark.parametrize("resume", [False, True])
    @pytest.mark.parametrize(
        "change, text",
        [
            ({"seed": 2}, "--seed: found 2; expected 1"),
            ({"sampling": {"eta": 0.5, "num_ensemble": 3}}, "--eta: found 0.5"),
            ({"model_sha256": "cd"}, "--model_path"),
            ({"images": 12}, "--data_dir"),
            ({"new": 1}, "--new: found 1; expected none"),
        ],
    )
    def test_are_refused_by_name_and_nothing_is_touched(self, tmp_path, change, text, resume):
        before = contents(run(tmp_path))
        report = (tmp_path / "run_report.json").read_bytes()
        with pytest.raises(UserError, match=text):
            run(tmp_path, settings={**SETTINGS, **change}, resume=resume)
        assert contents(tmp_path) == before and (tmp_path / "run_report.json").read_bytes() == report

    def test_of_another_part_are_refused_too(self, tmp_path):
        run(tmp_path, part_id=0, num_parts=2)
        with pytest.raises(UserError, match="--seed.*run_report_part_0_of_2.json"):
            run(tmp_path, settings={**SETTINGS, "seed": 2}, part_id=1, num_parts=2)

    def test_where_the_folder_lies_is_free(self, tmp_path, whole):
        run(tmp_path / "a")
        (tmp_path / "a").rename(tmp_path / "b")
        run(tmp_path / "b", settings={**SETTINGS, "out_dir": "there", "model_path": "moved"})
        assert contents(tmp_path / "b") == whole

    def test_the_sampler_of_an_older_report_is_understood(self, tmp_path):
        """Read a report of an older version, which has two booleans instead of the sampler's name."""
        old = {**SETTINGS, "sampling": {"use_ddim": False, "dpm_solver": True}}
        new = {**SETTINGS, "sampling": {"sampler": "dpm-solver++"}}
        write_report(report_path(tmp_path), old)
        writer = CaseWriter(tmp_path, ["mask"])
        require_same_run(writer, [], new)
        with pytest.raises(UserError, match="--sampler"):
            require_same_run(writer, [], {**SETTINGS, "sampling": {"sampler": "ddim"}})

    def test_masks_without_a_report_are_refused(self, tmp_path):
        run(tmp_path)
        (tmp_path / "run_report.json").unlink()
        with pytest.raises(UserError, match="without a run_report.json"):
            run(tmp_path, resume=True)

    def test_a_broken_report_is_refused(self, tmp_path):
        (tmp_path / "run_report.json").write_text("{")
        with pytest.raises(UserError, match="run_report.json: found no JSON"):
            run(tmp_path)


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "mps"])
def test_the_masks_of_a_folder_may_come_from_several_devices(tmp_path, whole, device):
    """The report says which one sampled last."""
    for asked in ("auto", device):
        settings = {**SETTINGS, "compute": {"device": asked, "mixed_precision": "no"}}
        run(tmp_path, settings=settings, resume=True, device=device)
        assert json.loads((tmp_path / "run_report.json").read_text())["device"] == device
    assert contents(tmp_path) == whole
    settings["compute"]["mixed_precision"] = "bf16"
    with pytest.raises(UserError, match="--mixed_precision: found 'bf16'; expected 'no'"):
        run(tmp_path, settings=settings, resume=True)


def test_cases_whose_files_would_collide_are_refused(tmp_path):
    """Use case a with label b_c, and case a_b with label c."""

    class Colliding(RandomDataset):
        def cases(self):
            return [Case(name, (k,), (32, 32)) for k, name in enumerate(("a", "a_b", "x"))]

    with pytest.raises(UserError, match="a_b_c_mask.png.* for a, a_b"):
        run(tmp_path, dataset=Colliding(length=3, labels=("b_c", "c")))
    assert not list(tmp_path.iterdir())
    require_names(tmp_path, Colliding().cases(), ("disc", "cup"))


def test_the_report_says_what_the_numbers_mean(tmp_path):
    run(tmp_path, fusion="majority")
    report = json.loads((tmp_path / "run_report.json").read_text())
    assert report["labels"] == ["mask"] and report["sampling"] == SETTINGS["sampling"]
    assert "vote" in report["definitions"]["probability"] and "votes" in report["definitions"]["uncertainty"]
    assert report["sampler_seconds"] > 0 and report["memory_mib"] > 1


def test_fusion_reaches_the_files(tmp_path):
    run(tmp_path, fusion="majority")
    probability = np.asarray(nib.load(tmp_path / "v0_probability.nii.gz").dataobj)[:, :, 0]
    votes = (drawn(None, ["v0/0"]) >= 0.5).mean(axis=0)[0, 0]
    assert abs(probability.mean() - votes.mean()) < 0.01 and 0 < probability.max() <= 1


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "AIL"])
def test_a_volumes_masks_lie_on_its_own_grid(tmp_path, orientation):
    """Compare affine, shape and header with those of the source in nibabel, for any order of axes."""
    folder = write_brats_phantom(tmp_path / "brats", "BraTS2021_00001", (40, 44, 6), seed=2)
    for path in (tmp_path / "brats").rglob("*.nii.gz"):
        image = nib.load(path)
        codes = nib.orientations.axcodes2ornt(orientation)
        turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), codes))
        nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine * [[1, 1, 1, 1]], turned.header), path)
    data = resolve({"data_name": "BRATS", "data_dir": str(folder)}).data
    out_dir = run(tmp_path / "masks", dataset=open_dataset(data, 32, "Test", need_masks=False))
    source = nib.load(next((tmp_path / "brats").rglob("*_flair.nii.gz")))
    assert "".join(nib.aff2axcodes(source.affine)) == orientation
    for kind in ("mask", "probability", "uncertainty"):
        image = nib.load(out_dir / f"BraTS2021_00001_{kind}.nii.gz")
        assert image.shape == source.shape
        np.testing.assert_array_equal(image.affine, source.affine)
        for field in ("pixdim", "qform_code", "sform_code", "xyzt_units"):
            np.testing.assert_array_equal(image.header[field], source.header[field])
    assert Image.open(out_dir / "BraTS2021_00001_overlay.png").size == source.shape[:2]

"""Test that `check-data` and training agree: what one refuses, the other reports in the same words."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support.agreement import agree

from guided_diffusion_core.data import phantoms

SIZE = 40
WRITERS = {
    "ISIC": lambda folder: phantoms.write_isic_phantoms(folder, 2, 1, SIZE, 1),
    "REFUGE2": lambda folder: phantoms.write_refuge2_phantoms(folder, 2, SIZE, 1),
    "DDTI": lambda folder: phantoms.write_ddti_phantoms(folder, 2, SIZE, 1),
    "IMAGES": lambda folder: phantoms.write_image_phantoms(folder, 2, SIZE, 1),
    "NNUNET": lambda folder: phantoms.write_nnunet_phantoms(folder, 2, 1, (SIZE, SIZE, 8), 1, ".png"),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_whole_sets(tmp_path, layout):
    WRITERS[layout](tmp_path)
    assert agree(tmp_path, layout) == []


def write_csv_of_another_machine(folder):
    """Write pictures, and a csv file with the paths that they had on the machine of a user of Windows."""
    for path in ("img/A0.JPG", "seg/A0.PNG"):
        (folder / path).parent.mkdir()
        Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / path)
    text = "img,seg\r\nC:\\Users\\me\\img\\A0.JPG,C:\\Users\\me\\seg\\A0.PNG\r\n"
    (folder / "ISIC_Training_GroundTruth.csv").write_text(text, encoding="utf-8-sig")


def test_a_csv_file_of_which_no_row_is_right(tmp_path):
    """The check gives the reason that training gives, and not that nothing is left."""
    write_csv_of_another_machine(tmp_path)
    [reason] = agree(tmp_path, "ISIC")
    assert "A0.JPG, which does not exist" in reason


@pytest.mark.parametrize("missing", ["images/case000.png", "masks/case001.png", "images", "masks"])
def test_unpaired_files(tmp_path, missing):
    WRITERS["IMAGES"](tmp_path)
    path = tmp_path / missing
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        file.unlink()
    assert agree(tmp_path, "IMAGES")


def test_the_command_writes_its_report_even_if_no_file_is_left(tmp_path, command):
    write_csv_of_another_machine(tmp_path)
    code, out, errors = command(
        "check_data", "--data_name", "ISIC", "--data_dir", tmp_path, "--out_dir", tmp_path / "out"
    )
    assert code == 1 and "A0.JPG, which does not exist" in out and "Traceback" not in errors
    assert (tmp_path / "out" / "fingerprint.png").is_file()


@pytest.mark.parametrize("labels", ["whole_tumour", "whole_tumour,tumour_core"])
def test_codes_of_another_challenge(tmp_path, labels):
    """Training takes any code as the whole tumour, and refuses one that it would have to give to a region."""
    phantoms.write_brats_phantom(tmp_path, "A", (16, 16, 4), seed=1)
    [path] = tmp_path.rglob("*seg.nii.gz")
    volume = nib.load(path)
    values = np.asarray(volume.dataobj)
    nib.save(nib.Nifti1Image(np.where(values == 4, 7, values).astype(np.uint8), volume.affine), path)
    refused = agree(tmp_path, "BRATS", labels=labels)
    assert bool(refused) == ("," in labels)

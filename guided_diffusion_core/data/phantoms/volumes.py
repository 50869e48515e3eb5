"""Phantoms of the layouts of volumes: a head with a tumour, as BraTS, plain folders and nnU-Net store it."""

import gzip
import json

import blobfile as bf
import nibabel as nib
import numpy as np

from guided_diffusion_core.data.formats.volumes import Geometry, volume_bytes
from guided_diffusion_core.data.layouts.brats import LABEL_PART, MODALITIES
from guided_diffusion_core.data.layouts.nnunet import DESCRIPTION, FOLDERS
from guided_diffusion_core.data.phantoms.pictures import encoded
from guided_diffusion_core.system.files import write_atomic

_BRATS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1]])
_CONTRAST = {"t1": -0.2, "t1ce": 0.2, "t2": 0.5, "flair": 0.7}
# Year of the challenge -> how a file is named, and the code of the enhancing tumour. 2023 has names of its own.
BRATS_FILES = {2020: ("{}_{}.nii", 4), 2021: ("{}_{}.nii.gz", 4), 2023: ("{}-{}.nii.gz", 3)}
BRATS_2023 = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", LABEL_PART: LABEL_PART}


def head_phantom(shape, seed):
    """A head with a tumour: dict of modality -> int16 (X, Y, Z), "seg" -> uint8 labels 1, 2 and 4.

    An ellipsoid of brain with a ball of tumour that is bright in flair and t2; the outermost slices are
    empty. shape: (X, Y, Z) voxels, at least 8 each. seed: int.
    """
    generator = np.random.default_rng(seed)
    grid = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*grid, indexing="ij")
    brain = x**2 / 0.6 + y**2 / 0.7 + z**2 / 0.7 < 1
    centre = generator.uniform(-0.25, 0.25, 3)
    radius = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    labels = np.where(radius < 0.15, 1, np.where(radius < 0.25, 4, 2)) * (radius < 0.4)
    volumes = {}
    for modality in MODALITIES:
        values = 600 * (1 + _CONTRAST[modality] * (labels > 0)) + generator.normal(0, 40, shape)
        volumes[modality] = np.where(brain, np.clip(values, 1, None), 0).astype(np.int16)
    volumes[LABEL_PART] = labels.astype(np.uint8)
    return volumes


def write_brats_phantom(folder, name, shape, seed, year=2021):
    """Write a `head_phantom` as a BraTS case, such as `folder/name/name_{t1,t1ce,t2,flair,seg}.nii.gz`;
    returns its folder. year: of `BRATS_FILES`."""
    title, enhancing = BRATS_FILES[year]
    target = bf.join(str(folder), name)
    bf.makedirs(target)
    for part, values in head_phantom(shape, seed).items():
        if part == LABEL_PART:
            values = np.where(values == 4, enhancing, values).astype(np.uint8)
        file = title.format(name, BRATS_2023[part] if year == 2023 else part)
        _write_volume(bf.join(target, file), values)
    return target


def write_brats_slices_phantom(folder, case, shape, seed, first=0):
    """Write a `head_phantom` as the original's slices, `{case}_slice0001/{case}_t1_001_w.nii.gz`; returns the folder.

    case: such as "brats_train_001". first: number of the first slice that is written.
    """
    volumes = head_phantom(shape, seed)
    for z in range(first, shape[2]):
        target = bf.join(str(folder), f"{case}_slice{z:04d}")
        bf.makedirs(target)
        for part, values in volumes.items():
            _write_volume(bf.join(target, f"{case}_{part}_{z:03d}_w.nii.gz"), values[:, :, z])
    return str(folder)


def write_volume_phantoms(folder, count, shape, seed):
    """Write the flair of `head_phantom`s as a plain folder, `images/case000.nii.gz` and `masks/case000.nii.gz`
    (0 and 1); returns the folder. count: number of cases. shape: (X, Y, Z)."""
    for number in range(count):
        volumes = head_phantom(shape, (seed, number))
        for kind, values in (("images", volumes["flair"]), ("masks", (volumes[LABEL_PART] > 0).astype(np.uint8))):
            target = bf.join(str(folder), kind)
            bf.makedirs(target)
            _write_volume(bf.join(target, f"case{number:03d}.nii.gz"), values)
    return str(folder)


def write_nnunet_phantoms(folder, train, test, shape, seed, ending=".nii.gz"):
    """Write `head_phantom`s as an nnU-Net data set of two channels and overlapping regions; returns the folder.

    train, test: number of cases. ending: .nii.gz or .nii for volumes, .png for their middle slices.
    """
    for split, numbers in (("Training", range(train)), ("Test", range(train, train + test))):
        for number in numbers:
            volumes = head_phantom(shape, (seed, number))
            # nnU-Net requires consecutive label values
            labels = np.where(volumes[LABEL_PART] == 4, 3, volumes[LABEL_PART]).astype(np.uint8)
            files = ((0, "_0000", volumes["t1ce"]), (0, "_0001", volumes["flair"]), (1, "", labels))
            for kind, channel, values in files:
                target = bf.join(str(folder), FOLDERS[split][kind])
                bf.makedirs(target)
                path = bf.join(target, f"head_{number:03d}{channel}{ending}")
                if ending == ".png":
                    middle = values[:, :, shape[2] // 2]
                    write_atomic(path, encoded(middle.astype(np.uint16 if channel else np.uint8), "PNG"))
                else:
                    _write_volume(path, values)
    description = {
        "channel_names": {"0": "T1ce", "1": "FLAIR"},
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing": 3},
        "regions_class_order": [2, 1, 3],
        "numTraining": train,
        "file_ending": ending,
    }
    write_atomic(bf.join(str(folder), DESCRIPTION), json.dumps(description, indent=2).encode())
    return str(folder)


def _write_volume(path, values):
    """Write a volume or a slice of one on BraTS's grid, compressed if its name says so."""
    header = nib.Nifti1Image(values, _BRATS_AFFINE).header
    content = volume_bytes(values, Geometry(values.shape, _BRATS_AFFINE, header))
    write_atomic(path, content if path.endswith(".gz") else gzip.decompress(content))

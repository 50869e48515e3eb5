"""Write phantoms of the volume layouts: a head with a tumour, as BraTS, plain folders and nnU-Net store it."""

import gzip
import json

import blobfile as bf
import nibabel as nib
import numpy as np

from guided_diffusion_core.data.formats import nifti
from guided_diffusion_core.data.formats.grids import Geometry
from guided_diffusion_core.data.layouts.brats import LABEL_PART, MODALITIES
from guided_diffusion_core.data.layouts.nnunet import DESCRIPTION, FOLDERS
from guided_diffusion_core.data.phantoms.pictures import encoded
from guided_diffusion_core.system.files import write_atomic

_BRATS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1]])
_CONTRAST = {"t1": -0.2, "t1ce": 0.2, "t2": 0.5, "flair": 0.7}  # brightness of the tumour relative to the brain
# year of the challenge -> name of a file, and code of the enhancing tumour
BRATS_FILES = {2020: ("{}_{}.nii", 4), 2021: ("{}_{}.nii.gz", 4), 2023: ("{}-{}.nii.gz", 3)}
# part -> its name in the files of 2023
BRATS_2023 = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", LABEL_PART: LABEL_PART}


def head_phantom(shape, seed):
    """Return a head with a tumour as a dict: modality -> int16 (X, Y, Z), "seg" -> uint8 labels 1, 2 and 4.

    The brain is an ellipsoid and the tumour a ball that is bright in flair and t2. The outermost slices are empty.
    shape: (X, Y, Z) in voxels, at least 8 each.
    seed:  int; the same seed returns the same head.
    """
    generator = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")  # (X, Y, Z) each
    brain = x**2 / 0.6 + y**2 / 0.7 + z**2 / 0.7 < 1
    centre = generator.uniform(-0.25, 0.25, 3)
    radius = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    # from the inside: necrotic core 1, enhancing tumour 4, edema 2
    labels = np.select([radius < 0.15, radius < 0.25, radius < 0.4], [1, 4, 2])
    volumes = {}
    for modality in MODALITIES:
        signal = 600 * (1 + _CONTRAST[modality] * (labels > 0))
        values = signal + generator.normal(0, 40, shape)
        # 0 is reserved for the background
        volumes[modality] = np.where(brain, np.clip(values, 1, None), 0).astype(np.int16)
    volumes[LABEL_PART] = labels.astype(np.uint8)
    return volumes


def write_brats_phantom(folder, name, shape, seed, year=2021):
    """Write a `head_phantom` as a BraTS case, `folder/name/name_{t1,t1ce,t2,flair,seg}.nii.gz`; return its folder.

    shape, seed: as in `head_phantom`.
    year:        a year of `BRATS_FILES`.
    """
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
    """Write a `head_phantom` as the original's slices, `{case}_slice0001/{case}_t1_001_w.nii.gz`; return the folder.

    case:        name such as "brats_train_001".
    shape, seed: as in `head_phantom`.
    first:       number of the first slice that is written.
    """
    volumes = head_phantom(shape, seed)
    for z in range(first, shape[2]):
        target = bf.join(str(folder), f"{case}_slice{z:04d}")
        bf.makedirs(target)
        for part, values in volumes.items():
            _write_volume(bf.join(target, f"{case}_{part}_{z:03d}_w.nii.gz"), values[:, :, z])
    return str(folder)


def write_volume_phantoms(folder, count, shape, seed):
    """Write the flair volumes of `head_phantom`s as a plain folder; return the folder.

    The files are `images/case000.nii.gz` and `masks/case000.nii.gz`, with masks of 0 and 1.
    count:       number of cases.
    shape, seed: as in `head_phantom`.
    """
    for number in range(count):
        volumes = head_phantom(shape, (seed, number))
        mask = (volumes[LABEL_PART] > 0).astype(np.uint8)
        for kind, values in (("images", volumes["flair"]), ("masks", mask)):
            target = bf.join(str(folder), kind)
            bf.makedirs(target)
            _write_volume(bf.join(target, f"case{number:03d}.nii.gz"), values)
    return str(folder)


def write_nnunet_phantoms(folder, train, test, shape, seed, ending=".nii.gz"):
    """Write `head_phantom`s as an nnU-Net data set with two channels and overlapping regions; return the folder.

    train, test: numbers of cases.
    shape, seed: as in `head_phantom`.
    ending:      .nii.gz or .nii for volumes, .png for their middle slices.
    """
    for split, numbers in (("Training", range(train)), ("Test", range(train, train + test))):
        for number in numbers:
            volumes = head_phantom(shape, (seed, number))
            # nnU-Net requires consecutive label values
            labels = np.where(volumes[LABEL_PART] == 4, 3, volumes[LABEL_PART]).astype(np.uint8)
            image_folder, label_folder = FOLDERS[split]
            files = (
                (image_folder, f"head_{number:03d}_0000", volumes["t1ce"]),
                (image_folder, f"head_{number:03d}_0001", volumes["flair"]),
                (label_folder, f"head_{number:03d}", labels),
            )
            for subfolder, name, values in files:
                target = bf.join(str(folder), subfolder)
                bf.makedirs(target)
                path = bf.join(target, name + ending)
                if ending == ".png":
                    middle = values[:, :, shape[2] // 2]
                    # Pillow has no int16: the intensities, which are above 0, become uint16
                    picture = middle if values is labels else middle.astype(np.uint16)
                    write_atomic(path, encoded(picture, "PNG"))
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
    """Write a volume or a slice with the affine of BraTS, compressed if its name ends in .gz."""
    header = nib.Nifti1Image(values, _BRATS_AFFINE).header
    content = nifti.encode(values, Geometry(values.shape, _BRATS_AFFINE, header))
    write_atomic(path, content if path.endswith(".gz") else gzip.decompress(content))

"""Synthetic data with exact masks: skin-lesion pictures in ISIC layout, and a BraTS-like volume.

They show that the software runs and learns; they say nothing about real patients.
"""
import io

import blobfile as bf
import nibabel as nib
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.draw import line

from guided_diffusion_core.data.brats import LABELS, MODALITIES
from guided_diffusion_core.data.volumes import Geometry, volume_bytes
from guided_diffusion_core.files import write_atomic

SKIN, LESION = np.array([0.80, 0.62, 0.52]), np.array([0.40, 0.25, 0.20])  # RGB in [0, 1]
HAIR = np.array([0.15, 0.11, 0.09])
_BRATS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1]])


def write_isic_phantoms(folder, train, test, size, seed):
    """Write skin-lesion phantoms in ISIC layout under `Train` and `Test`; returns these two folders.

    train, test: number of pictures. size: their height in pixels; widths vary from 1 to 3/2 of it.
    seed:        int; the same seed writes the same files.
    """
    folders = []
    parts = (("Train", "Training", range(train)), ("Test", "Test", range(train, train + test)))
    for name, split, numbers in parts:
        root = bf.join(str(folder), name)
        start = bf.join(root, f"ISBI2016_ISIC_Part1_{split}")
        bf.makedirs(f"{start}_Data")
        bf.makedirs(f"{start}_GroundTruth")
        for number in numbers:
            picture, mask = lesion_phantom(size, np.random.default_rng((seed, number)))
            case = f"ISIC_{number:07d}"
            write_atomic(bf.join(f"{start}_Data", f"{case}.jpg"), _encoded(picture, "JPEG", quality=95))
            write_atomic(bf.join(f"{start}_GroundTruth", f"{case}_Segmentation.png"), _encoded(mask, "PNG"))
        folders.append(root)
    return tuple(folders)


def lesion_phantom(size, generator):
    """One skin-lesion picture and its mask: uint8 (H, W, 3), and uint8 (H, W) of 0 and 255.

    A dark blob with a wavy outline and a soft border on uneven skin, under a few hairs, with noise.
    size: height in pixels. generator: numpy `Generator`.
    """
    shape = (size, size + 16 * int(generator.integers(0, size // 32 + 1)))
    distance = _blob_distance(shape, generator)
    # the mask is where the blend of lesion and skin passes one half
    lesion = 1 / (1 + np.exp(distance / (0.01 * size)))
    shading = 1 + 0.6 * _smooth_noise(shape, size / 4, generator)
    mottling = 1 + 1.2 * _smooth_noise(shape, size / 24, generator)
    tone = generator.uniform(0.85, 1.1) * SKIN * shading[..., None]
    dark = generator.uniform(0.7, 1.2) * LESION * mottling[..., None]
    picture = tone + lesion[..., None] * (dark - tone)
    _draw_hairs(picture, int(generator.integers(0, 8)), generator)
    picture += generator.normal(0, 0.02, picture.shape)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8), (distance <= 0).astype(np.uint8) * 255


def write_brats_phantom(folder, name, shape, seed):
    """Write a BraTS-like case, `folder/name/name_{t1,t1ce,t2,flair,seg}.nii.gz`; returns its folder.

    An ellipsoid of brain with an ellipsoid of tumour (labels 1, 2 and 4) that is bright in flair and t2;
    the outermost slices are empty. shape: (X, Y, Z) voxels, at least 8 each. seed: int.
    """
    generator = np.random.default_rng(seed)
    grid = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*grid, indexing="ij")
    brain = x**2 / 0.6 + y**2 / 0.7 + z**2 / 0.7 < 1
    centre = generator.uniform(-0.25, 0.25, 3)
    radius = np.sqrt((x - centre[0])**2 + (y - centre[1])**2 + (z - centre[2])**2)
    labels = np.where(radius < 0.15, 1, np.where(radius < 0.25, 4, 2)) * (radius < 0.4)
    contrast = {"t1": -0.2, "t1ce": 0.2, "t2": 0.5, "flair": 0.7}
    volumes = {}
    for modality in MODALITIES:
        values = 600 * (1 + contrast[modality] * (labels > 0)) + generator.normal(0, 40, shape)
        volumes[modality] = np.where(brain, np.clip(values, 1, None), 0).astype(np.int16)
    volumes[LABELS] = labels.astype(np.uint8)
    target = bf.join(str(folder), name)
    bf.makedirs(target)
    header = nib.Nifti1Image(labels.astype(np.uint8), _BRATS_AFFINE).header
    for modality, values in volumes.items():
        content = volume_bytes(values, Geometry(tuple(shape), _BRATS_AFFINE, header))
        write_atomic(bf.join(target, f"{name}_{modality}.nii.gz"), content)
    return target


def _blob_distance(shape, generator):
    """(H, W) signed distance along the ray from the blob's centre, negative inside, in pixels."""
    height, width = shape
    centre = generator.uniform(0.38, 0.62, 2) * shape
    y, x = np.mgrid[:height, :width] - centre[:, None, None]
    angle, radius = np.arctan2(y, x), np.hypot(y, x)
    outline = generator.uniform(0.16, 0.32) * height * np.ones(shape)
    for wave in range(2, 7):
        amplitude = generator.uniform(0, 0.22) / wave
        outline *= 1 + amplitude * np.cos(wave * angle + generator.uniform(0, 2 * np.pi))
    return radius - outline


def _smooth_noise(shape, sigma, generator):
    """Gaussian noise smoothed to a width of `sigma` pixels, scaled to a standard deviation of 0.1."""
    noise = gaussian_filter(generator.standard_normal(shape), sigma, mode="reflect")
    return 0.1 * noise / noise.std()


def _draw_hairs(picture, hairs, generator):
    """Draw straight hairs, one pixel wide, across a picture (H, W, 3) in place."""
    height, width = picture.shape[:2]
    for _ in range(hairs):
        rows, columns = generator.integers(0, height, 2), generator.integers(0, width, 2)
        picture[line(rows[0], columns[0], rows[1], columns[1])] = HAIR


def _encoded(picture, file_format, **settings):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, file_format, **settings)
    return buffer.getvalue()

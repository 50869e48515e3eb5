"""Phantoms of the layouts of pictures: skin lesions, fundus photographs, ultrasound."""

import io
import json

import blobfile as bf
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.draw import line

from guided_diffusion_core.data.folders import LABELS_FILE
from guided_diffusion_core.data.layouts.refuge2 import BACKGROUND, CUP, RIM
from guided_diffusion_core.system.files import write_atomic

# RGB in [0, 1]
SKIN = np.array([0.80, 0.62, 0.52])
LESION = np.array([0.40, 0.25, 0.20])
HAIR = np.array([0.15, 0.11, 0.09])
FUNDUS = np.array([1.0, 0.55, 0.35])
# Year of the challenge -> names of the folders of images and masks, with the split in them.
ISIC_FOLDERS = {
    2016: ("ISBI2016_ISIC_Part1_{}_Data", "ISBI2016_ISIC_Part1_{}_GroundTruth"),
    2017: ("ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth"),
    2018: ("ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth"),
}


def write_isic_phantoms(folder, train, test, size, seed, year=2016):
    """Write skin-lesion phantoms in ISIC layout under `Train` and `Test`; returns these two folders.

    train, test: number of pictures. size: their height in pixels; widths vary from 1 to 3/2 of it.
    seed:        int; the same seed writes the same files. year: of `ISIC_FOLDERS`.
    """
    folders = []
    parts = (("Train", "Training", range(train)), ("Test", "Test", range(train, train + test)))
    for name, split, numbers in parts:
        root = bf.join(str(folder), name)
        images, masks = (bf.join(root, title.format(split)) for title in ISIC_FOLDERS[year])
        bf.makedirs(images)
        bf.makedirs(masks)
        for number in numbers:
            picture, mask = lesion_phantom(size, np.random.default_rng((seed, number)))
            case = f"ISIC_{number:07d}"
            write_atomic(bf.join(images, f"{case}.jpg"), encoded(picture, "JPEG", quality=95))
            write_atomic(bf.join(masks, f"{case}_Segmentation.png"), encoded(mask, "PNG"))
        folders.append(root)
    return tuple(folders)


def write_refuge2_phantoms(folder, count, size, seed):
    """Write fundus phantoms in REFUGE2 layout: JPEG photographs, and masks as PNG in RGBA of cup 0, rim 128 and
    background 255; returns the folder. count: number of cases. size: their side in pixels."""
    images, masks = (bf.join(str(folder), name) for name in ("Disc_Cup_Fovea_Illustration", "Disc_Cup_Masks"))
    bf.makedirs(images)
    bf.makedirs(masks)
    for number in range(1, count + 1):
        generator = np.random.default_rng((seed, number))
        y, x = (np.mgrid[:size, :size] + 0.5) / size
        row, column = generator.uniform(0.35, 0.65, 2)
        distance = np.hypot(y - row, x - column)
        disc = generator.uniform(0.12, 0.2)
        cup = disc * generator.uniform(0.4, 0.7)
        codes = np.where(distance < cup, CUP, np.where(distance < disc, RIM, BACKGROUND)).astype(np.uint8)
        eye = np.hypot(y - 0.5, x - 0.5) < 0.48
        light = eye * (0.45 + 0.25 * (distance < disc) + 0.25 * (distance < cup))
        picture = light[..., None] * FUNDUS + generator.normal(0, 0.01, (size, size, 3))
        grey = np.stack([codes] * 3 + [np.full_like(codes, 255)], axis=-1)  # (H, W, 4)
        write_atomic(bf.join(images, f"T{number:04d}.jpg"), encoded(_bytes(picture), "JPEG", quality=95))
        write_atomic(bf.join(masks, f"T{number:04d}.png"), encoded(grey, "PNG"))
    return str(folder)


def write_ddti_phantoms(folder, count, size, seed):
    """Write ultrasound phantoms in DDTI layout, `images/1.PNG` and `masks/1.PNG`, both grey; returns the folder.
    count: number of pictures. size: their height in pixels, the width varies as of `lesion_phantom`."""
    for number in range(1, count + 1):
        generator = np.random.default_rng((seed, number))
        picture, mask = lesion_phantom(size, generator)
        speckle = generator.rayleigh(0.8, mask.shape)
        grey = _bytes(picture.mean(axis=-1) / 255 * speckle)
        _write_pair(folder, str(number), encoded(grey, "PNG"), encoded(mask, "PNG"), ".PNG")
    return str(folder)


def write_image_phantoms(folder, count, size, seed, labelled=False):
    """Write skin-lesion phantoms as a plain folder, `images/case000.png` and `masks/case000.png`; returns it.

    count, size: as of `write_ddti_phantoms`. labelled: masks of 0, 1 and 2, the inner half of a lesion, with
    a labels.json of lesion (1 and 2) and core (2).
    """
    for number in range(count):
        picture, mask = lesion_phantom(size, np.random.default_rng((seed, number)))
        if labelled:
            rows, columns = np.nonzero(mask)
            near = np.hypot(*(np.indices(mask.shape) - np.array([rows.mean(), columns.mean()])[:, None, None]))
            mask = (mask > 0) * (1 + (near < np.sqrt(len(rows) / 2 / np.pi))).astype(np.uint8)
        _write_pair(folder, f"case{number:03d}", encoded(picture, "PNG"), encoded(mask, "PNG"), ".png")
    if labelled:
        content = json.dumps({"background": 0, "lesion": [1, 2], "core": 2})
        write_atomic(bf.join(str(folder), LABELS_FILE), content.encode())
    return str(folder)


def _write_pair(folder, name, image, mask, suffix):
    for kind, content in (("images", image), ("masks", mask)):
        target = bf.join(str(folder), kind)
        bf.makedirs(target)
        write_atomic(bf.join(target, name + suffix), content)


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
    return _bytes(picture), (distance <= 0).astype(np.uint8) * 255


def _blob_distance(shape, generator):
    """(H, W) signed distance along the ray from the blob's centre, negative inside, in pixels."""
    height, width = shape
    centre = generator.uniform(0.38, 0.62, 2) * shape
    y, x = np.mgrid[:height, :width] - centre[:, None, None]
    angle = np.arctan2(y, x)
    radius = np.hypot(y, x)
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
        rows = generator.integers(0, height, 2)
        columns = generator.integers(0, width, 2)
        picture[line(rows[0], columns[0], rows[1], columns[1])] = HAIR


def _bytes(picture):
    """A picture in [0, 1] (what lies beyond is clipped) as uint8."""
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def encoded(picture, file_format, **settings):
    """The content of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, file_format, **settings)
    return buffer.getvalue()

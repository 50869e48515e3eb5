"""Write phantoms of the picture layouts: skin lesions, fundus photographs, ultrasound."""

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

# colours, RGB in [0, 1]
SKIN = np.array([0.80, 0.62, 0.52])
LESION = np.array([0.40, 0.25, 0.20])
HAIR = np.array([0.15, 0.11, 0.09])
FUNDUS = np.array([1.0, 0.55, 0.35])
# year of the challenge -> names of the folders of images and of masks; {} stands for the split
ISIC_FOLDERS = {
    2016: ("ISBI2016_ISIC_Part1_{}_Data", "ISBI2016_ISIC_Part1_{}_GroundTruth"),
    2017: ("ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth"),
    2018: ("ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth"),
}


def write_isic_phantoms(folder, train, test, size, seed, year=2016):
    """Write skin-lesion phantoms in ISIC layout under `Train` and `Test`; return these two folders.

    train, test: numbers of pictures.
    size:        height of the pictures in pixels; their widths vary from 1 to 3/2 of it.
    seed:        int; the same seed writes the same files.
    year:        a year of `ISIC_FOLDERS`.
    """
    folders = []
    parts = (("Train", "Training", range(train)), ("Test", "Test", range(train, train + test)))
    image_title, mask_title = ISIC_FOLDERS[year]
    for name, split, numbers in parts:
        root = bf.join(str(folder), name)
        images = bf.join(root, image_title.format(split))
        masks = bf.join(root, mask_title.format(split))
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
    """Write fundus phantoms in REFUGE2 layout; return the folder.

    The photographs are JPEG files. The masks are PNG files in RGBA with the values 0 for the cup, 128 for the rim
    and 255 for the background.
    count: number of cases.
    size:  side of the pictures in pixels.
    seed:  int; the same seed writes the same files.
    """
    images = bf.join(str(folder), "Disc_Cup_Fovea_Illustration")
    masks = bf.join(str(folder), "Disc_Cup_Masks")
    bf.makedirs(images)
    bf.makedirs(masks)
    for number in range(1, count + 1):
        picture, codes = _fundus_phantom(size, np.random.default_rng((seed, number)))
        opaque = np.full_like(codes, 255)
        mask = np.stack([codes, codes, codes, opaque], axis=-1)  # (H, W, 4)
        write_atomic(bf.join(images, f"T{number:04d}.jpg"), encoded(picture, "JPEG", quality=95))
        write_atomic(bf.join(masks, f"T{number:04d}.png"), encoded(mask, "PNG"))
    return str(folder)


def _fundus_phantom(size, generator):
    """Return one fundus photograph and its mask: uint8 (H, W, 3), and uint8 (H, W) of cup, rim and background."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size  # pixel centres in [0, 1], (H, W) each
    row, column = generator.uniform(0.35, 0.65, 2)
    distance = np.hypot(y - row, x - column)  # from the centre of the disc
    disc_radius = generator.uniform(0.12, 0.2)
    cup_radius = disc_radius * generator.uniform(0.4, 0.7)
    in_disc = distance < disc_radius
    in_cup = distance < cup_radius
    codes = np.full((size, size), BACKGROUND, np.uint8)
    codes[in_disc] = RIM
    codes[in_cup] = CUP
    in_eye = np.hypot(y - 0.5, x - 0.5) < 0.48
    light = in_eye * (0.45 + 0.25 * in_disc + 0.25 * in_cup)
    picture = light[..., None] * FUNDUS + generator.normal(0, 0.01, (size, size, 3))
    return _as_bytes(picture), codes


def write_ddti_phantoms(folder, count, size, seed):
    """Write ultrasound phantoms in DDTI layout, grey `images/1.PNG` and `masks/1.PNG`; return the folder.

    count: number of pictures.
    size:  height of the pictures in pixels; the widths are those of `lesion_phantom`.
    seed:  int; the same seed writes the same files.
    """
    for number in range(1, count + 1):
        generator = np.random.default_rng((seed, number))
        picture, mask = lesion_phantom(size, generator)
        speckle = generator.rayleigh(0.8, mask.shape)  # the multiplicative noise of ultrasound
        grey = _as_bytes(picture.mean(axis=-1) / 255 * speckle)
        _write_pair(folder, str(number), encoded(grey, "PNG"), encoded(mask, "PNG"), ".PNG")
    return str(folder)


def write_image_phantoms(folder, count, size, seed, labelled=False):
    """Write skin-lesion phantoms as a plain folder, `images/case000.png` and `masks/case000.png`; return the folder.

    count, size, seed: as in `write_ddti_phantoms`.
    labelled:          if True, the masks have the value 1, and 2 in the core of a lesion, and a labels.json names
                       lesion (1 and 2) and core (2).
    """
    for number in range(count):
        picture, mask = lesion_phantom(size, np.random.default_rng((seed, number)))
        if labelled:
            mask = _with_core(mask)
        _write_pair(folder, f"case{number:03d}", encoded(picture, "PNG"), encoded(mask, "PNG"), ".png")
    if labelled:
        content = json.dumps({"background": 0, "lesion": [1, 2], "core": 2})
        write_atomic(bf.join(str(folder), LABELS_FILE), content.encode())
    return str(folder)


def _with_core(mask):
    """Return a mask (H, W) of a lesion as 1, and 2 in a disc at its centre with half its area."""
    rows, columns = np.nonzero(mask)
    y, x = np.indices(mask.shape)
    distance = np.hypot(y - rows.mean(), x - columns.mean())
    core = distance < np.sqrt(len(rows) / 2 / np.pi)
    return (mask > 0) * (1 + core).astype(np.uint8)


def _write_pair(folder, name, image, mask, suffix):
    """Write the contents of an image file and a mask file to `images/` and `masks/`."""
    for kind, content in (("images", image), ("masks", mask)):
        target = bf.join(str(folder), kind)
        bf.makedirs(target)
        write_atomic(bf.join(target, name + suffix), content)


def lesion_phantom(size, generator):
    """Return one skin-lesion picture and its mask: uint8 (H, W, 3), and uint8 (H, W) of 0 and 255.

    The lesion is a dark blob with a wavy outline and a soft border. It is on uneven skin, under a few hairs.
    size:      height in pixels.
    generator: numpy `Generator`.
    """
    width = size + 16 * int(generator.integers(0, size // 32 + 1))
    shape = (size, width)
    distance = _blob_distance(shape, generator)
    # the share of lesion in each pixel; the mask is where it exceeds one half
    lesion = 1 / (1 + np.exp(distance / (0.01 * size)))
    shading = 1 + 0.6 * _smooth_noise(shape, size / 4, generator)
    mottling = 1 + 1.2 * _smooth_noise(shape, size / 24, generator)
    tone = generator.uniform(0.85, 1.1) * SKIN * shading[..., None]
    dark = generator.uniform(0.7, 1.2) * LESION * mottling[..., None]
    picture = tone + lesion[..., None] * (dark - tone)
    _draw_hairs(picture, int(generator.integers(0, 8)), generator)
    picture += generator.normal(0, 0.02, picture.shape)
    mask = (distance <= 0).astype(np.uint8) * 255
    return _as_bytes(picture), mask


def _blob_distance(shape, generator):
    """Return the distance to a blob's outline along the ray from its centre: (H, W), in pixels, negative inside."""
    height, width = shape
    centre = generator.uniform(0.38, 0.62, 2) * shape
    y, x = np.mgrid[:height, :width] - centre[:, None, None]
    angle = np.arctan2(y, x)
    radius = np.hypot(y, x)
    outline = generator.uniform(0.16, 0.32) * height * np.ones(shape)  # radius of the outline at each angle
    for wave in range(2, 7):
        amplitude = generator.uniform(0, 0.22) / wave
        phase = generator.uniform(0, 2 * np.pi)
        outline *= 1 + amplitude * np.cos(wave * angle + phase)
    return radius - outline


def _smooth_noise(shape, sigma, generator):
    """Return Gaussian noise (H, W), smoothed by `sigma` pixels and scaled to a standard deviation of 0.1."""
    noise = gaussian_filter(generator.standard_normal(shape), sigma, mode="reflect")
    return 0.1 * noise / noise.std()


def _draw_hairs(picture, hairs, generator):
    """Draw straight hairs with a width of one pixel into a picture (H, W, 3), in place."""
    height, width = picture.shape[:2]
    for _ in range(hairs):
        rows = generator.integers(0, height, 2)
        columns = generator.integers(0, width, 2)
        picture[line(rows[0], columns[0], rows[1], columns[1])] = HAIR


def _as_bytes(picture):
    """Return a picture with values in [0, 1] as uint8; other values are clipped."""
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def encoded(picture, file_format, **settings):
    """Return the content of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, file_format, **settings)
    return buffer.getvalue()

"""Picture files as people have them: masks of one shape in every way of storing them, and wrong ones."""

import io

import numpy as np
import tifffile
from PIL import Image

SHAPE = (36, 44)
_ROWS, _COLUMNS = np.mgrid[: SHAPE[0], : SHAPE[1]]
LEFT = np.hypot(_ROWS - 12, _COLUMNS - 14) < 8
RIGHT = np.hypot(_ROWS - 24, _COLUMNS - 32) < 7
MASK = LEFT | RIGHT
# 0 in the background, 1 on the border of the mask and inside; about one half there
SOFT = np.clip((8.5 - np.hypot(_ROWS - 12, _COLUMNS - 14)) / 4 + 0.5, 0, 1)
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [64, 0, 0] * 252 + [224, 224, 192]


def by_mask(inside, outside=0, mask=MASK, dtype=np.uint8):
    """Return a picture, (H, W) or (H, W, C), of two values or colours."""
    return np.where(mask[..., None], np.atleast_1d(inside), np.atleast_1d(outside)).astype(dtype).squeeze()


def palette(indices, colours):
    """Return a PIL picture of indices and the colours of its palette."""
    picture = Image.fromarray(np.asarray(indices, np.uint8)).convert("L")
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(list(colours) + [0] * (768 - len(colours)))
    return picture


def two_colours(first, second):
    """Return the left lesion in one colour and the right one in another, on black."""
    return by_mask(first, 0, LEFT) + by_mask(second, 0, RIGHT)


def with_alpha(colours, alpha):
    """Return (H, W, 2) or (H, W, 4): grey or colours, and their opacity."""
    grey_or_colours = colours[..., None] if colours.ndim == 2 else colours
    return np.concatenate([grey_or_colours, alpha[..., None]], axis=-1).astype(np.uint8)


def transparent_palette(indices, colours, alphas):
    """Return the content of a PNG file whose palette has opacities."""
    return content(palette(indices, colours), "PNG", transparency=bytes(alphas))


def content(picture, file_format, **settings):
    """Return the content of a picture file."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **settings)
    return buffer.getvalue()


def tiff(values, **settings):
    """Return the content of a TIFF file of any type."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **settings)
    return buffer.getvalue()


def any_picture(mode, values, seed):
    """Return a PIL picture of random pixels.

    mode: one of Pillow's, or "F/255" for floating point up to 1. values: the numbers from 0 to 255 that it is made of.
    """
    random = np.random.default_rng(seed)
    channels = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3, "LAB": 3}.get(mode)
    pixels = random.choice(values, (*SHAPE, channels) if channels else SHAPE).astype(np.uint8)
    if mode == "P":
        return palette(pixels, random.choice(values, 768))
    if mode == "1":
        return Image.fromarray(pixels > 127)
    if mode in ("I;16", "I", "F", "F/255"):
        dtype = {"I;16": np.uint16, "I": np.int32}.get(mode, np.float32)
        return Image.fromarray((pixels * (1 / 255 if mode == "F/255" else 7)).astype(dtype))
    return Image.frombytes(mode, SHAPE[::-1], pixels.tobytes())


def write(path, picture):
    """Write an array, a PIL picture or the content of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file_format = {"jpg": "JPEG", "tif": "TIFF"}.get(path.suffix[1:], path.suffix[1:].upper())
    path.write_bytes(picture if isinstance(picture, bytes) else content(picture, file_format))
    return path


WHITE = np.full((*SHAPE, 3), 255, np.uint8)
RED = (255, 0, 0)
PADDED = by_mask(0, 255, _COLUMNS < 4)  # a margin that is transparent

BLOCKS = (_ROWS // 16 == 1) & (_COLUMNS // 16 == 1)  # whole blocks of a JPEG file, which stay free of ringing
NEARLY_BLACK = (_COLUMNS < 16).astype(np.uint8)[..., None] * np.array((6, 0, 0), np.uint8)

# Masks that every binary set reads as `MASK`: name -> (ending, picture)
ONE_MASK = {
    "grey": ("png", by_mask(255)),
    "one bit": ("png", Image.fromarray(MASK)),
    "one bit, TIFF": ("tif", tiff(MASK, photometric="minisblack")),
    "grey in RGB": ("png", by_mask((255, 255, 255))),
    "JPEG": ("jpg", content(by_mask(255), "JPEG", quality=95)),
    "tinted JPEG": ("jpg", content(by_mask((250, 255, 245), (3, 0, 8)), "JPEG", quality=95, subsampling=0)),
    "tinted grey": ("png", by_mask((250, 255, 245), (130, 121, 120))),
    # the transparency is the mask
    "alpha of white": ("png", with_alpha(WHITE, by_mask(255))),
    "alpha of grey": ("png", with_alpha(WHITE[..., 0], by_mask(255))),
    "alpha of black": ("png", with_alpha(by_mask(0), by_mask(255))),
    "alpha of a black drawing": ("png", with_alpha(by_mask(0, (255, 255, 255)), by_mask(255))),
    "faint alpha": ("png", with_alpha(WHITE, by_mask(100))),
    "alpha of a palette": ("png", transparent_palette(MASK, [255] * 6, [0, 255])),
    "alpha of a palette, other order": ("png", transparent_palette(~MASK, [255] * 6, [255, 0])),
    # colours and transparency
    "colour and alpha": ("png", with_alpha(by_mask(RED), by_mask(255))),
    "half transparent foreground": ("png", with_alpha(by_mask(RED), by_mask(128, 255))),
    "transparent margin": ("png", with_alpha(by_mask(255), PADDED)),
    "palette with a transparent background": ("png", transparent_palette(MASK, VOC[:6], [0, 255])),
    # one colour
    "blue": ("png", by_mask((0, 0, 255))),
    "dark colour": ("bmp", by_mask((64, 0, 0))),
    "colours of matplotlib": ("png", by_mask((253, 231, 36), (68, 1, 84))),
    "colour JPEG": ("jpg", content(by_mask((255, 40, 40)), "JPEG", quality=95, subsampling=0)),
    "colour of 16 bits": ("tif", tiff(by_mask((40000, 0, 0), 0, dtype=np.uint16), photometric="rgb")),
    # palettes
    "palette": ("png", palette(MASK, VOC)),
    "index 15": ("png", palette(MASK * 15, VOC)),
    "index 255 alone": ("png", palette(MASK * 255, [0] * 765 + [0, 255, 0])),
    "white before black": ("png", palette(~MASK, [255, 255, 255, 0, 0, 0])),
    "red before black": ("png", palette(~MASK, [255, 0, 0, 0, 0, 0])),
    "palette of blacks": ("png", palette(MASK, [0] * 6)),
    "border": ("png", palette(np.where(RIGHT, 1, np.where(LEFT, 1, 0)) + 255 * (_ROWS == 0), VOC)),
    # depths
    "0 and 65535": ("png", by_mask(65535, dtype=np.uint16)),
    "0 and 255 in 16 bits": ("png", by_mask(255, dtype=np.uint16)),
    "0 and 4095": ("tif", by_mask(4095, dtype=np.uint16)),
    "0 and 255 in 32 bits": ("tif", by_mask(255, dtype=np.int32)),
    "0 and 65535 in 32 bits": ("tif", by_mask(65535, dtype=np.int32)),
    "0 and 32767": ("tif", tiff(by_mask(32767, dtype=np.int16))),
    "0 and 2**31": ("tif", tiff(by_mask(2**31, dtype=np.uint32))),
    "0.0 and 1.0": ("tif", by_mask(1, dtype=np.float32)),
    "0.0 and 255.0": ("tif", by_mask(255, dtype=np.float32)),
    "0.0 and 1.0 in double precision": ("tif", tiff(by_mask(1, dtype=np.float64))),
}

# Soft edges: name -> (ending, picture, mask)
SOFT_EDGES = {
    "8 bits": ("png", (SOFT * 255).astype(np.uint8), (SOFT * 255).astype(np.uint8) >= 128),
    "16 bits": ("png", (SOFT * 65535).astype(np.uint16), (SOFT * 65535).astype(np.uint16) >= 32768),
    "32 bits": ("tif", (SOFT * 65535).astype(np.int32), (SOFT * 65535).astype(np.int32) >= 32768),
    "alpha": ("png", with_alpha(WHITE, SOFT * 255), (SOFT * 255).astype(np.uint8) >= 128),
    "colour": ("png", (SOFT[..., None] * (255, 20, 60)).astype(np.uint8), (SOFT * 255).astype(np.uint8) >= 128),
    "palette of greys": (
        "png",
        palette(255 - (SOFT * 255).astype(np.uint8), np.repeat(np.arange(256)[::-1], 3)),
        (SOFT * 255).astype(np.uint8) >= 128,
    ),
}

# JPEG of few colours: some of them are nearly black and mean nothing. (ending, picture, mask)
SOFT_EDGES_OF_JPEG = ("jpg", content(by_mask(RED, 0, BLOCKS) + NEARLY_BLACK, "JPEG", quality=95, subsampling=0), BLOCKS)

# Several colours: one foreground in a layout of one label, perhaps labels in a plain folder. name -> (ending, picture)
SEVERAL_COLOURS = {
    "red and green": ("png", two_colours(RED, (0, 255, 0))),
    "dark colours": ("bmp", two_colours((64, 0, 0), (0, 0, 40))),
    "bright and dark": ("tif", two_colours((255, 255, 0), (0, 0, 90))),
    "palette": ("png", palette(LEFT + 2 * RIGHT, VOC)),
    "palette with a border": ("png", palette(LEFT + 2 * RIGHT + 255 * (_ROWS == 0), VOC)),
}

# Refused in every binary set: name -> (ending, picture, what is found)
REFUSED = {
    "colour against alpha": ("png", with_alpha(by_mask(RED, 0, LEFT), by_mask(255, 0, RIGHT)), "different masks"),
    "white against alpha": ("png", with_alpha(by_mask(255, 0, LEFT), by_mask(255, 0, RIGHT)), "different masks"),
    "no black": ("png", by_mask(RED, (255, 255, 255)), r"\(255, 0, 0\), \(255, 255, 255\)"),
    "one colour": ("png", by_mask(RED, RED), r"the colours \(255, 0, 0\)"),
    "colour JPEG without black": ("jpg", content(by_mask(RED, (0, 0, 255)), "JPEG", quality=95), "more than 8 colours"),
    "fractions": ("tif", SOFT.astype(np.float32), "not whole"),
    "fractions of 255": ("tif", (SOFT * 255).astype(np.float32) + np.float32(0.25), "not whole"),
    "NaN": ("tif", np.where(MASK, np.float32(np.nan), np.float32(0)), "NaN"),
    "negative": ("tif", tiff(by_mask(1, -1, dtype=np.int16)), "from -1 to 1"),
    "negative floats": ("tif", by_mask(1, -1, dtype=np.float32), "from -1 to 1"),
    "below half": ("png", by_mask(2), "at most 2"),
    "below half in 16 bits": ("png", (SOFT * 20000).astype(np.uint16), "at most 20000"),
    "stack": ("tif", tiff(np.stack([by_mask(255)] * 3), photometric="minisblack"), "3 pages"),
    "animation": (
        "png",
        content(by_mask(255), "PNG", save_all=True, append_images=[Image.fromarray(by_mask(0, 255))]),
        "2 pages",
    ),
    "GIF": ("png", content(by_mask(255), "GIF", save_all=True, append_images=[Image.fromarray(~MASK)]), "2 pages"),
    "text": ("png", b"words", "no complete image"),
}

"""Open picture files: one page, upright, with the values as stored.

Everything that reads a picture or a picture mask reads it through this module, and so agrees on what a file holds.
"""

import io
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from guided_diffusion_core.errors import UserError, found_expected
from guided_diffusion_core.system.files import open_bytes, read_bytes

# Pillow's modes of at most 8 bits per channel
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa")
GREY_MODES = ("1", "L", "LA", "La")
PALETTE_MODES = ("P", "PA")
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP")
OPAQUE = 255
MOST_VALUES = 4 * Image.MAX_IMAGE_PIXELS  # pixels times channels
BITS_PER_SAMPLE = 258  # the TIFF tag for the bit depths of the channels
SAMPLE_FORMAT = 339  # the TIFF tag for the type of the values
UNSIGNED = 1
PHOTOMETRIC = 262  # the TIFF tag for what the values mean
ZERO_IS_WHITE = 0  # its value for grey values of which 0 is white, as tifffile writes truth values
FILE_TYPE = 254  # the TIFF tag for the kind of a page
REDUCED = 1  # its bit for a smaller copy of another page
OLD_FILE_TYPE = 255  # the tag that older programs use instead
OLD_REDUCED = 2
ORIENTATION = 274  # the EXIF and TIFF tag for the orientation
UPRIGHT = 1  # its value for pixels that are stored upright
MPO_FRAMES = 0xB002  # the tag of a camera's JPEG that lists its frames
# The chunks of a PNG file: its pixels, and the starts of those that may hold an orientation
PNG_PIXELS = b"IDAT"
PNG_NOTES = re.compile(rb"eXIf|[tz]TXtRaw profile type exif|iTXtXML:com.adobe.xmp")
PNG_SIGNATURE = 8  # bytes
PNG_FRAME = 12  # bytes of a chunk without its content: length, type, checksum

# orientation -> function that turns an array (H, W, ...) upright, as `PIL.ImageOps.exif_transpose` does
TURNS = {
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: values.swapaxes(0, 1)[::-1, ::-1],
    8: lambda values: np.rot90(values),
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width

# Broken files make the decoders of Pillow and tifffile raise errors of nearly every class: SyntaxError, TypeError,
# struct.error, DecompressionBombError and more. Only `Exception` covers them all.
BROKEN = Exception


@dataclass(frozen=True)
class Header:
    """The size of a picture.

    shape:       (height, width) in pixels, upright.
    orientation: the EXIF orientation that was applied, 1 to 8; 1 if none was.
    """

    shape: tuple
    orientation: int


@dataclass(frozen=True)
class Raster:
    """A decoded picture, upright.

    image:       a PIL image; None if tifffile has read the file, because Pillow would cut its bits.
    array:       the values that tifffile has read, (H, W) or (H, W, C); None if there is an image.
    orientation: the EXIF orientation that was applied, 1 to 8.
    is_lossy:    True if the format changes the values, as JPEG does.
    is_inverted: True for a TIFF file whose 0 is white. Pillow inverts those of at most 8 bits, and no others.
    """

    image: Image.Image | None
    array: np.ndarray | None
    orientation: int
    is_lossy: bool
    is_inverted: bool = False

    @cached_property
    def values(self):
        """Return the values as stored, (H, W) or (H, W, C); a picture with a palette has its indices.

        Those of a TIFF file whose 0 is white are inverted, as viewers show them.
        """
        values = self.array if self.image is None else _values(self.image)
        if self.is_inverted and not self.is_eight_bit and values.dtype.kind == "u":
            return np.iinfo(values.dtype).max - values
        return values

    @property
    def shape(self):
        """Return (height, width)."""
        return self.array.shape[:2] if self.image is None else self.image.size[::-1]

    @property
    def is_eight_bit(self):
        """Return True if the picture has at most 8 bits per channel."""
        return self.image is not None and self.image.mode in EIGHT_BITS

    @property
    def has_palette(self):
        """Return True if the values are the indices of a palette."""
        return self.image is not None and self.image.mode in PALETTE_MODES

    @property
    def indices(self):
        """Return the indices of a picture with a palette, (H, W)."""
        return self.values if self.values.ndim == 2 else self.values[..., 0]

    @cached_property
    def colours(self):
        """Return what the picture shows without its transparency: (H, W) for grey, (H, W, 3) for colours."""
        if self.is_eight_bit:
            mode = "L" if self.image.mode in GREY_MODES else "RGB"
            return np.asarray(self.image if self.image.mode == mode else self.image.convert(mode))
        if self.values.ndim == 2:
            return self.values
        channels = self.values.shape[2]
        return self.values[..., :3] if channels >= 3 else self.values[..., 0]

    @cached_property
    def alpha(self):
        """Return how opaque each pixel is, (H, W) from 0 to the largest value of its type; None without transparency.

        A single transparent colour says nothing that the colours do not say, and counts as no transparency.
        """
        if self.is_eight_bit:
            has_table = self.image.mode == "P" and "transparency" in self.image.info
            if has_table or self.image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
                return np.asarray(self.image.convert("RGBA"))[..., 3]
            return None
        has_alpha = self.values.ndim == 3 and self.values.shape[2] in (2, 4)
        return self.values[..., -1] if has_alpha else None


def read_header(path):
    """Return the `Header` of a picture. A file whose header Pillow cannot read is decoded for it.

    Raises `UserError` for a file that is not an image, and for one of several pages.
    """
    try:
        with open_bytes(path) as file, Image.open(file) as image:
            _choose_page(image, path)
            shape = image.height, image.width
            if image.format == "TIFF":  # releases of Pillow differ in which of the two sizes they give
                shape = image.tag_v2[257], image.tag_v2[256]
            orientation = _orientation(image, file)
    except UserError:
        raise
    except BROKEN:
        raster = read_raster(path)
        return Header(raster.shape, raster.orientation)
    return Header(shape[::-1] if orientation in SIDEWAYS else shape, orientation)


def read_raster(path):
    """Decode a picture and turn it upright; return its `Raster`.

    tifffile reads the TIFF files that Pillow cannot open and those whose bits Pillow would cut off.
    Raises `UserError` for a file that is not a complete image, and for one of several pages.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        image = Image.open(content)
        _choose_page(image, path)
        orientation = _orientation(image, content)
        if not _would_be_cut(image):
            image.load()
            is_lossy = image.format in LOSSY_FORMATS
            if orientation != UPRIGHT and image.format != "TIFF":  # Pillow turns TIFF by itself
                ImageOps.exif_transpose(image, in_place=True)
            is_inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == ZERO_IS_WHITE
            return Raster(image, None, orientation, is_lossy, is_inverted)
    except UserError:
        raise
    except BROKEN as error:
        if not _is_tiff(path):
            raise not_an_image(path, error) from error
    return _tiff_raster(path)


def _choose_page(image, path):
    """Go to the one picture of a file. Raises `UserError` if it holds several.

    Smaller copies do not count: the reduced pages of a TIFF file, and the previews in a camera's JPEG.
    """
    frames = getattr(image, "n_frames", 1)
    if frames == 1:
        return
    if image.format == "MPO":
        kinds = [frame["Attribute"]["MPType"] for frame in image.mpinfo[MPO_FRAMES]]
        frames = 1 + sum(kind.startswith("Multi-Frame") for kind in kinds[1:])
    elif image.format == "TIFF":
        full = []
        for number in range(frames):
            image.seek(number)
            tags = image.tag_v2
            is_reduced = tags.get(FILE_TYPE, 0) & REDUCED or tags.get(OLD_FILE_TYPE) == OLD_REDUCED
            if not is_reduced:
                full.append(number)
        frames = len(full) or frames
        image.seek(full[0] if full else 0)
    if frames > 1:
        raise several_pages(path, frames)


def _orientation(image, file):
    """Return the EXIF orientation of a picture whose pixels are not decoded yet, 1 to 8; 1 if the EXIF is damaged."""
    if image.format == "TIFF":
        found = image.tag_v2.get(ORIENTATION, UPRIGHT)
        return found if found in TURNS else UPRIGHT
    try:
        if image.format == "PNG" and "exif" not in image.info and not _has_late_notes(file):
            exif = Image.Image.getexif(image)  # the method of PNG's own class decodes the pixels
        else:
            exif = image.getexif()
    except BROKEN:
        return UPRIGHT
    found = exif.get(ORIENTATION, UPRIGHT)
    return found if found in TURNS else UPRIGHT


def _has_late_notes(file):
    """Return True if a PNG file has an orientation behind its pixels, which Pillow reads only when it decodes them."""
    place = file.tell()
    position = PNG_SIGNATURE
    after_pixels = False
    found = False
    while not found:
        file.seek(position)
        start = file.read(32)  # length, type, and the first bytes of the content
        if len(start) < PNG_FRAME:
            break
        after_pixels = after_pixels or start[4:8] == PNG_PIXELS
        found = after_pixels and PNG_NOTES.match(start[4:]) is not None
        position += PNG_FRAME + int.from_bytes(start[:4], "big")
    file.seek(place)
    return found


def _would_be_cut(image):
    """Return True for a TIFF file whose bits Pillow would cut: it opens three channels of 16 bits as "RGB"."""
    return image.format == "TIFF" and image.mode in EIGHT_BITS and max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8


def _values(image):
    """Return the values of a decoded PIL image, in the type of the file where Pillow has another one for it."""
    values = np.asarray(image)
    if values.dtype != np.int32:
        return values
    if image.format == "PNG":  # 16 bits, which older releases of Pillow open as 32
        return values.astype(np.uint16)
    if image.format == "TIFF" and image.tag_v2.get(BITS_PER_SAMPLE) == (32,):
        is_unsigned = image.tag_v2.get(SAMPLE_FORMAT, (UNSIGNED,)) == (UNSIGNED,)
        return values.view(np.uint32) if is_unsigned else values
    return values


def _tiff_raster(path):
    """Return the `Raster` of a TIFF file that Pillow cannot read, for example three channels of 16 bits."""
    try:
        with tifffile.TiffFile(io.BytesIO(read_bytes(path))) as file:
            pages = [page for page in file.pages if not page.is_reduced] or list(file.pages)
            page = pages[0]
            # a broken header may claim any size: check it before memory is allocated
            if page.imagewidth * page.imagelength > Image.MAX_IMAGE_PIXELS or page.size > MOST_VALUES:
                raise Image.DecompressionBombError(f"{page.imagewidth} x {page.imagelength} pixels")
            values = page.asarray()
            is_planar = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
            is_inverted = page.photometric == ZERO_IS_WHITE
            tag = page.tags.get(ORIENTATION)
            orientation = UPRIGHT if tag is None else int(tag.value)
    except BROKEN as error:
        raise not_an_image(path, error) from error
    if len(pages) > 1:
        raise several_pages(path, len(pages))
    if is_planar and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)  # (C, H, W) -> (H, W, C)
    if values.ndim not in (2, 3):
        raise found_expected(path, f"an array of shape {values.shape}", "one picture", "Replace the file.")
    if orientation in TURNS:
        return Raster(None, TURNS[orientation](values), orientation, False, is_inverted)
    return Raster(None, values, UPRIGHT, False, is_inverted)


def _is_tiff(path):
    return str(path).lower().endswith((".tif", ".tiff"))


def require_black_zero(raster, where):
    """Raise `UserError` for a mask whose 0 is white: whether 0 is the background or the foreground cannot be known.

    where: the file.
    """
    if raster.is_inverted:
        raise found_expected(
            where,
            "a TIFF mask of which 0 is white (photometric interpretation 0, MinIsWhite)",
            "one of which 0 is black",
            "Save it again, with tifffile as imwrite(..., photometric='minisblack').",
        )


def several_pages(path, pages):
    """Return the error for a file of several pages."""
    return found_expected(path, f"{pages} pages or frames", "one picture", "Write each page to a separate file.")


def not_an_image(path, error):
    """Return the error for a file that is not a complete image."""
    if isinstance(error, Image.DecompressionBombError):
        most = f"at most {2 * Image.MAX_IMAGE_PIXELS:,} pixels"
        return found_expected(path, f"a header of too large a picture ({error})", most, "Cut it into smaller ones.")
    reason = "an unknown format" if isinstance(error, UnidentifiedImageError) else error
    return found_expected(
        path, f"no complete image ({reason})", "a JPEG or PNG image", "Replace the file, or remove it from the folder."
    )

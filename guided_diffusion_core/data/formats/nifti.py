"""Read and write NIfTI volumes, on disk or in a bucket."""

import gzip
import io
import math
import zlib

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.wrapstruct import WrapStructError

from guided_diffusion_core.data.formats.grids import Geometry
from guided_diffusion_core.data.formats.voxels import not_numbers, require_memory, require_numbers, spatial_shape
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import READ_ERRORS, open_bytes, read_bytes
from guided_diffusion_core.system.room import size_text

NIFTI2_HEADER_BYTES = 540  # a NIfTI-1 header has 348

_GZIP_MAGIC = b"\x1f\x8b"
_PIECE = 2**24  # bytes that are unpacked at once; as many may lie behind the voxels
# the errors that nibabel, gzip and the reading of files raise for a broken file
_BROKEN = (
    EOFError,
    zlib.error,
    WrapStructError,
    HeaderDataError,
    ImageDataError,
    ImageFileError,
    ValueError,
    OverflowError,
    MemoryError,
    *READ_ERRORS,
)


def read_geometry(path, of_slice=False):
    """Return the `Geometry` of a NIfTI file from its header, and check that the file is complete.

    of_slice: see `voxels.spatial_shape`.

    The check is cheap: a gzip file ends with its uncompressed length (RFC 1952), which must equal the length that
    the header asks for. They differ in a truncated file, but also in a file of several gzip members, so the whole
    file is read when they differ.
    Raises `UserError` for a broken or truncated file, and for one whose voxels are not those of one volume.
    """
    try:
        with open_bytes(path) as file:
            compressed = file.read(2) == _GZIP_MAGIC
            length = file.seek(0, io.SEEK_END)
            file.seek(-min(4, length), io.SEEK_END)
            trailer = file.read(4)
            file.seek(0)
            header = _header(gzip.GzipFile(fileobj=file) if compressed else file)
            expected_length = _expected_length(header)
    except _BROKEN as error:
        raise _broken(path, error) from error
    geometry = _geometry(path, header, of_slice)
    if compressed:
        # the last four bytes of a gzip file are its uncompressed length modulo 2**32
        is_complete = int.from_bytes(trailer, "little") == expected_length % 2**32
    else:
        is_complete = length >= expected_length
    if not is_complete:
        read(path, of_slice)
    return geometry


def read(path, of_slice=False):
    """Return (voxels (X, Y, Z), `Geometry`) of a NIfTI file; voxels in their stored type or scaled by the slope.

    of_slice: see `voxels.spatial_shape`.
    Raises `UserError` like `read_geometry`.
    """
    content = read_bytes(path)
    try:
        if content.startswith(_GZIP_MAGIC):
            content = _unpacked(content, path)
        header_class = type(_header(io.BytesIO(content)))
        image_class = nib.Nifti2Image if header_class is nib.Nifti2Header else nib.Nifti1Image
        image = image_class.from_bytes(content)
        # a broken header may claim any size: check it before memory is allocated
        expected_length = _expected_length(image.header)
        if len(content) < expected_length:
            raise EOFError(f"{len(content)} of {expected_length} bytes")
        geometry = _geometry(path, image.header, of_slice)
        values = np.asanyarray(image.dataobj)
    except _BROKEN as error:
        raise _broken(path, error) from error
    return values.reshape(geometry.shape, order="F"), geometry


def encode(array, geometry):
    """Return a compressed NIfTI file of an array (X, Y, Z) on the grid of `geometry`.

    It has the header of the source, if that is a NIfTI file, and its shape. The same array gives the same bytes.
    """
    if geometry.header is None:
        image = nib.Nifti1Image(array, geometry.affine)
    else:
        image = _like_source(array, geometry)
    return gzip.compress(image.to_bytes(), compresslevel=3, mtime=0)  # mtime: no time of writing in the file


def _like_source(array, geometry):
    """Return nibabel's image of an array with the header of the source."""
    header = geometry.header.copy()
    header.set_data_dtype(array.dtype)
    # the display range and the extensions describe the intensities of the source, not this array
    header["cal_min"] = header["cal_max"] = 0
    header.extensions.clear()
    stored_shape = header.get_data_shape()
    # some sources have axes of length 1 behind the three of space
    if stored_shape[:3] == array.shape and math.prod(stored_shape) == array.size:
        array = array.reshape(stored_shape)
    image_class = nib.Nifti1Image if isinstance(header, nib.Nifti1Header) else nib.Nifti2Image
    return image_class(array, geometry.affine, header)


def _geometry(path, header, of_slice):
    """Return the `Geometry` of a header. Raises `UserError` for voxels that are not those of one volume."""
    require_numbers(path, header.get_data_dtype())
    shape = spatial_shape(path, header.get_data_shape(), of_slice)
    is_placed = bool(header["sform_code"] > 0 or header["qform_code"] > 0)
    return Geometry(shape, header.get_best_affine(), header, is_placed)


def _expected_length(header):
    """Return the uncompressed length in bytes of the file that a header describes."""
    shape = (int(n) for n in header.get_data_shape())
    return int(header["vox_offset"]) + math.prod(shape) * header.get_data_dtype().itemsize


def _header(file):
    """Return nibabel's header at the start of a file, of NIfTI-1 or NIfTI-2, without its extensions.

    A header begins with its own length as a 32-bit number, in the byte order of the file.
    """
    start = file.read(NIFTI2_HEADER_BYTES)
    lengths = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    header_class = nib.Nifti2Header if NIFTI2_HEADER_BYTES in lengths else nib.Nifti1Header
    return header_class(start[: header_class.sizeof_hdr])


def _unpacked(content, path):
    """Return the content of a gzip file, of which no more is unpacked than its header asks for and a little rest.

    Raises `UserError` if that is more than the memory holds.
    """
    expected_length = _expected_length(_header(gzip.GzipFile(fileobj=io.BytesIO(content))))
    require_memory(path, expected_length)
    file = gzip.GzipFile(fileobj=io.BytesIO(content))
    pieces = []
    length = 0
    # piece by piece: the memory of a whole one is taken at once, whatever comes
    while piece := file.read(_PIECE):
        pieces.append(piece)
        length += len(piece)
        if length > expected_length + _PIECE:
            raise ValueError(f"more than {size_text(_PIECE)} behind the {size_text(expected_length)} of its voxels")
    return b"".join(pieces)


def _broken(path, error):
    if "data code" in str(error):  # nibabel's words for a type that it does not read, such as single bits
        return not_numbers(path, f"voxels of an unusual type ({error})")
    return found_expected(
        path, f"no complete NIfTI file ({error})", "a NIfTI volume (.nii or .nii.gz)", "Copy or download it again."
    )

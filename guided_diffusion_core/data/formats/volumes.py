"""Read and write NIfTI volumes, on disk or in a bucket, and cache prepared ones within a memory limit."""

import gzip
import io
import math
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import blobfile as bf
import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.wrapstruct import WrapStructError

from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import READ_ERRORS, read_bytes

SUFFIXES = (".nii", ".nii.gz")
AFFINE_TOLERANCE = 1e-3  # millimetres for the origin, millimetres per voxel for the axes
NIFTI2_HEADER_BYTES = 540  # a NIfTI-1 header has 348

_GZIP_MAGIC = b"\x1f\x8b"
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
    *READ_ERRORS,
)


@dataclass(frozen=True)
class Geometry:
    """The voxel grid of a volume.

    shape:  (X, Y, Z) in voxels.
    affine: (4, 4), voxel indices to millimetres.
    header: nibabel header.
    """

    shape: tuple
    affine: np.ndarray
    header: Any

    def agrees_with(self, other):
        """Return True if two volumes have the same voxel grid."""
        same_affine = np.allclose(self.affine, other.affine, rtol=0, atol=AFFINE_TOLERANCE)
        return self.shape == other.shape and same_affine


def stem(name):
    """Return a file name without .nii or .nii.gz (in any case), or None if it has neither."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return None


def read_geometry(path, of_slice=False):
    """Return the `Geometry` of a NIfTI file from its header, and check that the file is complete.

    of_slice: the file holds one slice, with two axes or with a third axis of length 1. The shape is (X, Y, 1) then.

    The check is cheap: a gzip file ends with its uncompressed length (RFC 1952), which must equal the length that
    the header asks for. They differ in a truncated file, but also in a file of several gzip members, so the whole
    file is read when they differ.
    Raises `UserError` for a broken or truncated file.
    """
    try:
        with bf.BlobFile(str(path), "rb") as file:
            compressed = file.read(2) == _GZIP_MAGIC
            length = file.seek(0, io.SEEK_END)
            file.seek(-min(4, length), io.SEEK_END)
            trailer = file.read(4)
            file.seek(0)
            header_class = _header_class(file, compressed)
            content = gzip.GzipFile(fileobj=file) if compressed else file
            header = header_class.from_fileobj(content)
            expected_length = _expected_length(header)
    except _BROKEN as error:
        raise _broken(path, error) from error
    shape = tuple(int(n) for n in header.get_data_shape())
    wanted = "a volume with three axes"
    if of_slice:
        wanted = "one slice with two axes"
        if len(shape) == 2:
            shape = (*shape, 1)
    if len(shape) != 3 or min(shape) < 1 or (of_slice and shape[2] > 1):
        advice = "Write each channel to a separate file." if len(shape) == 4 else "Replace the file."
        raise found_expected(path, f"an array of shape {shape}", wanted, advice)
    if compressed:
        # the last four bytes of a gzip file are its uncompressed length modulo 2**32
        is_complete = int.from_bytes(trailer, "little") == expected_length % 2**32
    else:
        is_complete = length >= expected_length
    if not is_complete:
        read_volume(path)
    return Geometry(shape, header.get_best_affine(), header)


def _expected_length(header):
    """Return the uncompressed length in bytes of the file that a header describes."""
    shape = (int(n) for n in header.get_data_shape())
    return int(header["vox_offset"]) + math.prod(shape) * header.get_data_dtype().itemsize


def _header_class(file, compressed):
    """Return nibabel's class for a NIfTI-1 or NIfTI-2 header, and rewind the file.

    A header begins with its own length as a 32-bit number, in the byte order of the file.
    """
    content = gzip.GzipFile(fileobj=file) if compressed else file
    start = content.read(4)
    file.seek(0)
    lengths = {int.from_bytes(start, order) for order in ("little", "big")}
    return nib.Nifti2Header if NIFTI2_HEADER_BYTES in lengths else nib.Nifti1Header


def read_volume(path):
    """Return the voxels of a NIfTI file, (X, Y, Z), in their stored type or scaled by the header's slope.

    Raises `UserError` for a broken or truncated file.
    """
    return read_with_geometry(path)[0]


def read_with_geometry(path):
    """Return (voxels, `Geometry`) of a NIfTI file with any number of axes, read once.

    Voxels and errors are those of `read_volume`.
    """
    content = read_bytes(path)
    try:
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
        header_class = _header_class(io.BytesIO(content), False)
        image_class = nib.Nifti2Image if header_class is nib.Nifti2Header else nib.Nifti1Image
        image = image_class.from_bytes(content)
        # a broken header may claim any size: check it before memory is allocated
        expected_length = _expected_length(image.header)
        if len(content) < expected_length:
            raise EOFError(f"{len(content)} of {expected_length} bytes")
        values = np.asanyarray(image.dataobj)
        return values, Geometry(values.shape, image.header.get_best_affine(), image.header)
    except _BROKEN as error:
        raise _broken(path, error) from error


def read_plane(path):
    """Return the pixels of a NIfTI file with one slice, (X, Y).

    Raises `UserError` for a broken file and for a file with several slices.
    """
    values = read_volume(path)
    if values.ndim == 3 and values.shape[2] == 1:
        return values[:, :, 0]
    if values.ndim != 2:
        raise found_expected(
            path,
            f"an array of shape {values.shape}",
            "one slice with two axes",
            "Use a layout for whole volumes.",
        )
    return values


def volume_bytes(array, geometry):
    """Return a compressed NIfTI file of an array (X, Y, Z) on the grid of `geometry`.

    The same array gives the same bytes.
    """
    header = geometry.header.copy()
    header.set_data_dtype(array.dtype)
    # the display range and the extensions describe the intensities of the source, not this array
    header["cal_min"] = header["cal_max"] = 0
    header.extensions.clear()
    image_class = nib.Nifti1Image if isinstance(header, nib.Nifti1Header) else nib.Nifti2Image
    content = image_class(array, geometry.affine, header).to_bytes()
    return gzip.compress(content, compresslevel=3, mtime=0)  # mtime: no time of writing in the file


def slices_above_zero(volume):
    """Return which axial slices of a volume (X, Y, Z) have a voxel above zero, (Z,) bool."""
    return (volume > 0).any(axis=(0, 1))


class VolumeCache:
    """A cache of prepared volumes by name that drops the least recently used ones above a memory limit.

    limit: bytes. The volume asked for last always stays, even above the limit.
    A copy that is sent to another process starts empty, so that no volume has to be pickled.
    """

    def __init__(self, limit):
        self.limit = limit
        self._volumes = OrderedDict()

    def get(self, name, prepare):
        """Return the volume of a name, which `prepare()` makes if it is not in the cache.

        prepare: function without arguments that returns an object with the attribute `nbytes`.
        """
        if name in self._volumes:
            self._volumes.move_to_end(name)
            return self._volumes[name]
        volume = prepare()
        self._volumes[name] = volume
        while len(self._volumes) > 1 and self._used_bytes() > self.limit:
            self._volumes.popitem(last=False)  # the least recently used one
        return volume

    def _used_bytes(self):
        return sum(volume.nbytes for volume in self._volumes.values())

    def __getstate__(self):
        return {"limit": self.limit}

    def __setstate__(self, state):
        self.__init__(state["limit"])


def _broken(path, error):
    return found_expected(
        path, f"no complete NIfTI file ({error})", "a NIfTI volume (.nii or .nii.gz)", "Copy or download it again."
    )

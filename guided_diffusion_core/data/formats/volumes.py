"""Reading NIfTI volumes, from disk or a bucket, and keeping prepared ones within a memory limit."""

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
AFFINE_TOLERANCE = 1e-3  # millimetres, and their change per voxel

_GZIP_MAGIC = b"\x1f\x8b"
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
    """Where a volume lies: shape (X, Y, Z) in voxels, affine (4, 4) to millimetres, nibabel header."""

    shape: tuple
    affine: np.ndarray
    header: Any

    def agrees_with(self, other):
        """Whether two volumes lie on the same grid of voxels."""
        same_place = np.allclose(self.affine, other.affine, rtol=0, atol=AFFINE_TOLERANCE)
        return self.shape == other.shape and same_place


def stem(name):
    """A file's name without .nii or .nii.gz, or None if it has neither (any case)."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return None


def read_geometry(path, of_slice=False):
    """`Geometry` of a NIfTI file, from its header, and a cheap check that the file is complete.

    of_slice: the file holds one slice, of two axes or with a third one of length 1; the shape is (X, Y, 1) then.

    A gzip file ends in its uncompressed length (RFC 1952), which is compared with the header's
    claim; only when they differ, as they do in a truncated file but also in one of several gzip
    members, is the whole file read. Raises `UserError` for a broken or truncated file.
    """
    try:
        with bf.BlobFile(str(path), "rb") as file:
            compressed = file.read(2) == _GZIP_MAGIC
            length = file.seek(0, io.SEEK_END)
            file.seek(-min(4, length), io.SEEK_END)
            trailer = file.read(4)
            file.seek(0)
            header_class = _header_class(file, compressed)
            header = header_class.from_fileobj(gzip.GzipFile(fileobj=file) if compressed else file)
            claimed = _claimed_length(header)
    except _BROKEN as error:
        raise _broken(path, error) from error
    shape = tuple(int(n) for n in header.get_data_shape())
    wanted = "a volume with three axes"
    if of_slice:
        wanted = "one slice, of two axes"
        shape = shape + (1,) * (len(shape) == 2)
    if len(shape) != 3 or min(shape) < 1 or (of_slice and shape[2] > 1):
        mend = "Write each channel into a file of its own." if len(shape) == 4 else "Replace the file."
        raise found_expected(path, f"an array of shape {shape}", wanted, mend)
    stored = int.from_bytes(trailer, "little") if compressed else length
    if stored != claimed % 2**32 if compressed else stored < claimed:
        read_volume(path)
    return Geometry(shape, header.get_best_affine(), header)


def _claimed_length(header):
    """Bytes that the file of a header must have, uncompressed."""
    shape = (int(n) for n in header.get_data_shape())
    return int(header["vox_offset"]) + math.prod(shape) * header.get_data_dtype().itemsize


def _header_class(file, compressed):
    """NIfTI-1 or NIfTI-2 by the length that a header begins with; leaves the file at its start."""
    start = (gzip.GzipFile(fileobj=file) if compressed else file).read(4)
    file.seek(0)
    sizes = {int.from_bytes(start, order) for order in ("little", "big")}
    return nib.Nifti2Header if 540 in sizes else nib.Nifti1Header


def read_volume(path):
    """The voxels of a NIfTI file, (X, Y, Z), in their stored type or scaled by the header's slope.
    Raises `UserError` for a broken or truncated file."""
    return read_with_geometry(path)[0]


def read_with_geometry(path):
    """(voxels, `Geometry`) of a NIfTI file of any number of axes, read once; as `read_volume`."""
    content = read_bytes(path)
    try:
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
        header_class = _header_class(io.BytesIO(content), False)
        image_class = nib.Nifti2Image if header_class is nib.Nifti2Header else nib.Nifti1Image
        image = image_class.from_bytes(content)
        if len(content) < _claimed_length(image.header):  # before room is made for what it claims
            raise EOFError(f"{len(content)} of {_claimed_length(image.header)} bytes")
        values = np.asanyarray(image.dataobj)
        return values, Geometry(values.shape, image.header.get_best_affine(), image.header)
    except _BROKEN as error:
        raise _broken(path, error) from error


def read_plane(path):
    """The pixels of a NIfTI file of one slice, (X, Y). Raises `UserError` for a broken file or more slices."""
    values = read_volume(path)
    if values.ndim == 3 and values.shape[2] == 1:
        return values[:, :, 0]
    if values.ndim != 2:
        raise found_expected(
            path,
            f"an array of shape {values.shape}",
            "one slice, of two axes",
            "Use the layout of volumes for whole ones.",
        )
    return values


def volume_bytes(array, geometry):
    """A compressed NIfTI file of an array (X, Y, Z) on the grid of `geometry`; the same array gives
    the same bytes."""
    header = geometry.header.copy()
    header.set_data_dtype(array.dtype)
    # the display range and the extensions speak of the source's intensities, not of this array
    header["cal_min"] = header["cal_max"] = 0
    header.extensions.clear()
    image = nib.Nifti1Image if isinstance(header, nib.Nifti1Header) else nib.Nifti2Image
    return gzip.compress(image(array, geometry.affine, header).to_bytes(), compresslevel=3, mtime=0)


def slices_above_zero(volume):
    """(Z,) bool: which axial slices of (X, Y, Z) have a voxel above zero."""
    return (volume > 0).any(axis=(0, 1))


class VolumeCache:
    """Prepared volumes by name; the least recently used leave when the limit is passed.

    limit: bytes. The last volume asked for always stays. A copy that is sent to another process
    starts empty, so that only names travel.
    """

    def __init__(self, limit):
        self.limit = limit
        self._volumes = OrderedDict()

    def get(self, name, prepare):
        """The volume of a name; `prepare()` makes it (with attribute `nbytes`) if it is not kept."""
        if name in self._volumes:
            self._volumes.move_to_end(name)
            return self._volumes[name]
        volume = self._volumes[name] = prepare()
        while len(self._volumes) > 1 and sum(kept.nbytes for kept in self._volumes.values()) > self.limit:
            self._volumes.popitem(last=False)
        return volume

    def __getstate__(self):
        return {"limit": self.limit}

    def __setstate__(self, state):
        self.__init__(state["limit"])


def _broken(path, error):
    return found_expected(
        path, f"no complete NIfTI file ({error})", "a NIfTI volume (.nii or .nii.gz)", "Copy or download it again."
    )

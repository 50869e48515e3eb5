"""Read volumes from numpy's .npy files, (X, Y, Z), on disk or in a bucket. They do not say where their voxels lie."""

import io
import math
import tokenize

import numpy as np

from guided_diffusion_core.data.formats.grids import Geometry
from guided_diffusion_core.data.formats.voxels import require_numbers, spatial_shape
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import read_bytes

# the errors of numpy for a broken header, which is a text in Python
_BROKEN = (ValueError, EOFError, KeyError, TypeError, SyntaxError, OverflowError, RecursionError, tokenize.TokenError)


def read_geometry(path, of_slice=False):
    """Return the `Geometry` of a file, whose affine is the identity; arguments and errors of `read`."""
    return read(path, of_slice)[1]


def read(path, of_slice=False):
    """Return (voxels (X, Y, Z), `Geometry`) of a file.

    of_slice: see `voxels.spatial_shape`.
    Raises `UserError` for a broken or truncated file, for one of Python objects, which are never loaded, and for one
    whose voxels are not those of one volume.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        shape, dtype = _header(content)
    except _BROKEN as error:
        raise _broken(path, error) from error
    require_numbers(path, dtype)
    spatial = spatial_shape(path, shape, of_slice)
    # a broken header may claim any size: check it before memory is allocated
    expected = math.prod(shape) * dtype.itemsize
    found = len(content.getbuffer()) - content.tell()
    if found < expected:
        raise _broken(path, f"{found} of {expected} bytes")
    content.seek(0)
    # the memory order in which the other formats are read, so that sums over a volume are rounded in the same way
    values = np.asfortranarray(np.load(content, allow_pickle=False).reshape(spatial))
    return values, Geometry(spatial, np.eye(4), is_placed=False)


def _header(content):
    """Return (shape, dtype) of a file, which is left at the first voxel. Raises ValueError for a broken header."""
    version = np.lib.format.read_magic(content)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(content)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(content)
    return shape, dtype


def _broken(path, error):
    return found_expected(
        path, f"no complete numpy array ({error})", "an array that numpy.save has written", "Write it again."
    )

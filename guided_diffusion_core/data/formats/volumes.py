"""Read volumes of every format by the ending of the file, and cache prepared ones within a memory limit."""

import os
from collections import OrderedDict

from guided_diffusion_core.data.formats import arrays, itk, nifti

# Ending of a file -> the module that reads it. A folder is a DICOM series.
READERS = {
    ".nii": nifti,
    ".nii.gz": nifti,
    ".mha": itk,
    ".mhd": itk,
    ".nrrd": itk,
    ".dcm": itk,
    ".ima": itk,
    ".npy": arrays,
}
SUFFIXES = tuple(READERS)


def suffix_of(name):
    """Return the ending of a volume in lower case, or None for other names."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def stem(name):
    """Return a file name without the ending of a volume (in any case), or None if it has none."""
    suffix = suffix_of(name)
    return None if suffix is None else name[: -len(suffix)]


def is_volume(path):
    """Return True for the path of a volume, which is a file with an ending of one or a folder of DICOM files."""
    return suffix_of(str(path)) is not None or os.path.isdir(path)


def is_read_from_disk(path):
    """Return True for a volume whose content cannot be handed over in memory, since a library opens it by its path."""
    return is_volume(path) and _reader(path) is itk


def _reader(path):
    return READERS.get(suffix_of(str(path)), itk)


def read_geometry(path, of_slice=False):
    """Return the `Geometry` of a volume without its voxels, and check that the file is complete.

    of_slice: the file holds one slice, with two axes or with a third axis of length 1. The shape is (X, Y, 1) then.
    Raises `UserError` for a broken file, and for one whose voxels are not those of one volume.
    """
    return _reader(path).read_geometry(path, of_slice)


def read_volume(path):
    """Return the voxels of a volume, (X, Y, Z). Raises `UserError` like `read_geometry`."""
    return read_with_geometry(path)[0]


def read_with_geometry(path, of_slice=False):
    """Return (voxels (X, Y, Z), `Geometry`) of a volume, read once; arguments and errors of `read_geometry`."""
    return _reader(path).read(path, of_slice)


def read_plane(path):
    """Return the pixels of a file with one slice, (X, Y). Raises `UserError` for a broken file or several slices."""
    values, _ = read_with_geometry(path, of_slice=True)
    return values[:, :, 0]


def slices_above_zero(volume):
    """Return which slices along the last axis of a volume (X, Y, Z) have a voxel above zero, (Z,) bool."""
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

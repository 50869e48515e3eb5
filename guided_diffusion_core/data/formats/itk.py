"""Read volumes of MetaImage, NRRD and DICOM with SimpleITK, which is an extra (`formats`); from this machine only.

ITK's coordinates point to the left, to the back and to the head (LPS). Affines here are nibabel's, RAS+, so the first
two rows change their sign.
"""

import math
import os

import numpy as np

from guided_diffusion_core.data.formats.dicom import require_possible_lengths
from guided_diffusion_core.data.formats.grids import TOLERANCE, Geometry, require_place
from guided_diffusion_core.data.formats.voxels import not_numbers, require_memory, spatial_shape
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import is_local, require_file

ALWAYS_POSSIBLE = 1 << 30  # bytes of voxels that any header may claim
MOST_COMPRESSED = 1100  # bytes of voxels for each byte of a file; zlib reaches 1032
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


def read_geometry(path, of_slice=False):
    """Return the `Geometry` of a file, or of a folder with one DICOM series, from headers alone.

    of_slice: see `voxels.spatial_shape`.
    Raises `UserError` for a broken file, for one whose voxels are not those of one volume, and without SimpleITK.
    """
    sitk = _simple_itk(path)
    if os.path.isdir(path):
        geometry = _series_geometry(sitk, path, _series_files(sitk, path))
    else:
        header = _header(sitk, path)
        shape = spatial_shape(path, header.GetSize(), of_slice)
        geometry = Geometry(shape, _affine(header, shape))
    require_place(path, geometry)  # ITK reads no volume without one
    return geometry


def read(path, of_slice=False):
    """Return (voxels (X, Y, Z), `Geometry`) of a file or a DICOM series; arguments and errors of `read_geometry`."""
    geometry = read_geometry(path, of_slice)
    require_memory(path, 8 * math.prod(geometry.shape))
    sitk = _simple_itk(path)
    source = _series_files(sitk, path) if os.path.isdir(path) else str(path)
    try:
        image = sitk.ReadImage(source)
    except RuntimeError as error:
        raise _broken(path, error) from error
    values = sitk.GetArrayFromImage(image).T  # (Z, Y, X) -> (X, Y, Z)
    return values.reshape(geometry.shape, order="F"), geometry


def _simple_itk(path):
    """Return the module SimpleITK. Raises `UserError` if it is not installed, and for a file in a bucket."""
    try:
        import SimpleITK as sitk  # here, because it is an extra
    except ImportError as error:
        raise found_expected(
            path,
            "no SimpleITK",
            "the package that reads this format",
            "Run: pip install SimpleITK (the extra formats of this package)",
        ) from error
    if not is_local(str(path)):
        raise found_expected(path, "a file in a bucket", "one on this machine in this format", "Copy it here.")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # else each odd DICOM tag is a line on the terminal
    return sitk


def _header(sitk, path):
    """Return SimpleITK's reader of a file after the header. Raises `UserError` for voxels that are not numbers."""
    require_file(path)
    require_possible_lengths(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _broken(path, error) from error
    components = reader.GetNumberOfComponents()
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if components != 1:
        raise not_numbers(path, f"{components} numbers per voxel")
    if "complex" in kind or "label" in kind:
        raise not_numbers(path, f"voxels of the type {kind}")
    _require_possible_size(path, reader, kind)
    return reader


def _require_possible_size(path, header, kind):
    """Refuse a header that claims far more than its file can hold, before memory is allocated; `UserError`.

    kind: type of the voxels in SimpleITK's words, such as "16-bit signed integer".
    """
    claimed = math.prod(header.GetSize()) * int(kind.split("-")[0]) // 8
    # the voxels of .mhd are in a file of their own
    is_whole = not str(path).lower().endswith(".mhd")
    if is_whole and claimed > ALWAYS_POSSIBLE and claimed > MOST_COMPRESSED * os.path.getsize(path):
        raise _broken(path, f"{claimed} bytes of voxels in a file of {os.path.getsize(path)} bytes")


def _affine(header, shape):
    """Return the affine (4, 4) of a header in RAS+. shape: (X, Y, Z); a slice has no third direction."""
    axes = header.GetDimension()
    direction = np.array(header.GetDirection()).reshape(axes, axes)
    count = min(axes, 3)
    affine = np.eye(4)
    affine[:count, :count] = (direction * header.GetSpacing())[:count, :count]
    affine[:count, 3] = header.GetOrigin()[:count]
    return LPS_TO_RAS @ affine


def _series_files(sitk, folder):
    """Return the files of the one DICOM series in a folder, in the order of their places."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_file():
            require_possible_lengths(entry.path)
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise found_expected(
            folder, f"{len(series)} DICOM series", "one series in a folder", "Move each series to its own folder."
        )
    return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])


def _series_geometry(sitk, folder, files):
    """Return the `Geometry` of a series from the headers of its files, whose origins give the third axis."""
    headers = [_header(sitk, path) for path in files]
    planes = []
    for path, header in zip(files, headers):
        shape = spatial_shape(path, header.GetSize())
        planes.append(Geometry(shape, _affine(header, shape)))
    first = planes[0]
    if len(planes) == 1:
        return first
    affine = first.affine.copy()
    affine[:, 2] = (planes[-1].affine[:, 3] - first.affine[:, 3]) / (len(planes) - 1)
    volume = Geometry((*first.shape[:2], len(planes)), affine)
    for number, plane in enumerate(planes):
        expected = affine.copy()
        expected[:, 3] += number * affine[:, 2]
        if plane.shape != first.shape or not _is_plane(plane.affine, expected):
            raise found_expected(
                files[number],
                "a slice that is not where the first and the last one of its series put it",
                f"slices of {first.shape[:2]} pixels at equal distances in {folder}",
                "Add the missing files, or move files of another series away.",
            )
    return volume


def _is_plane(affine, expected):
    """Return True if a slice lies where it is expected, within a share of a voxel.

    Its own third column says nothing: a single file does not know the distance to the next one.
    """
    sides = np.linalg.norm(expected[:3, :3], axis=0)
    distance = np.linalg.norm((affine - expected)[:3, [0, 1, 3]], axis=0)
    return bool((distance <= TOLERANCE * sides.min()).all()) if sides.min() > 0 else False


def _broken(path, error):
    reason = str(error).strip().splitlines()[-1].strip()
    return found_expected(
        path, f"no volume that SimpleITK reads ({reason})", "a whole file", "Copy or download it again."
    )

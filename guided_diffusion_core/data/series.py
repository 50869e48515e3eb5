"""DICOM series in folders of data: each folder of slices becomes one volume, named by the folder."""

from dataclasses import replace
from pathlib import PurePath

import blobfile as bf

from guided_diffusion_core.data.formats.dicom import is_dicom
from guided_diffusion_core.data.formats.volumes import stem
from guided_diffusion_core.system.files import is_local

SLICES = (".dcm", ".ima")  # endings of DICOM files, in lower case
VOLUME = ".dcm"  # the ending of the name, not of the path, of a series among the files of its folder


def with_series(files, is_folder_of_volumes):
    """Return the files of a folder of data with one `DataFile` for each DICOM series, whose path is its folder.

    files:                list of `DataFile`.
    is_folder_of_volumes: function of the name of a folder that returns True if it holds volumes side by side, such as
                          "images". A DICOM file right inside it is a volume of its own.
    """
    found = {}  # folder -> its series
    others = []
    for file in files:
        is_alone = file.parts and is_folder_of_volumes(file.parts[-1])
        if is_alone or not _is_dicom(file):
            others.append(file)
        else:
            folder = bf.dirname(file.path)
            found.setdefault(folder, _series(file, folder))
    return sorted([*others, *found.values()], key=lambda file: (file.parts, file.name))


def _is_dicom(file):
    """Return True for a DICOM file; many have no ending, or the last number of their identifier in its place."""
    ending = PurePath(file.name).suffix.lower()
    if ending in SLICES:
        return True
    if not is_local(file.path) or not (ending == "" or ending[1:].isdigit()):
        return False
    return is_dicom(file.path)


def _series(file, folder):
    """Return the `DataFile` of the series that a file belongs to."""
    name = file.parts[-1] if file.parts else bf.basename(folder)
    # a folder such as patient.nii would be taken for another format
    name = stem(name) or name
    return replace(file, parts=file.parts[:-1], name=name + VOLUME, path=folder)

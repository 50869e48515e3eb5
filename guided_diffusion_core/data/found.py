"""Say what a folder holds when a layout finds none of its files in it."""

from pathlib import PurePath

from guided_diffusion_core.data.formats.volumes import SUFFIXES
from guided_diffusion_core.data.walk import leave_out, walk_data
from guided_diffusion_core.errors import UserError, found_expected

MOST_ENDINGS = 5  # endings that an error lists
MOST_NAMES = 3  # names that it gives for each of them
# ending, in lower case -> what to do with such files, which no layout reads
CONVERSIONS = {
    ".npz": "Write the arrays to .nii.gz with nibabel, or to .png with Pillow.",
    ".mat": "Write the arrays to .nii.gz with nibabel, or to .png with Pillow.",
    ".h5": "Write the arrays to .nii.gz with nibabel, or to .png with Pillow.",
    ".hdf5": "Write the arrays to .nii.gz with nibabel, or to .png with Pillow.",
    ".img": "Convert the volumes to .nii.gz, for example with nibabel.",
    ".mgz": "Convert the volumes to .nii.gz, for example with nibabel.",
    ".svs": "Cut the slides into pictures such as .png.",
    ".gif": "Convert the pictures to .png.",
    ".webp": "Convert the pictures to .png.",
    ".heic": "Convert the pictures to .png.",
    ".zip": "Unpack the archives.",
    ".tar": "Unpack the archives.",
    ".gz": "Unpack the archives.",
    ".tar.gz": "Unpack the archives.",
    ".tgz": "Unpack the archives.",
    ".rar": "Unpack the archives.",
    ".7z": "Unpack the archives.",
}
# The same for files that also stand beside data.
ANNOTATIONS = {
    ".json": "Export the annotations as mask pictures.",
    ".xml": "Export the annotations as mask pictures.",
}
# Endings of pictures and volumes that some layout reads.
READ = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", *SUFFIXES)
UNREAD = "file of a kind that this layout does not read"


class NothingFound(UserError):
    """A folder holds no file of a layout."""


def find_files(data_dir, is_read, gather=list):
    """Return the files of a folder that a layout reads, a list of `DataFile`.

    Other pictures, volumes and files that could be converted to some are noted as left out (`walk.leave_out`).
    is_read: function of a file's name. gather: function of the files, a list of `DataFile`, that may join several.
    """
    found = []
    for file in gather(walk_data(data_dir)):
        if is_read(file.name):
            found.append(file)
        elif is_data(file.name):
            leave_out(UNREAD, file.shown)
    return found


def is_data(name):
    """Return whether a file is a picture or a volume by its name, or could be converted to one."""
    return ending_of(name) in READ or ending_of(name) in CONVERSIONS


def nothing_found(data_dir, expected, what="file of this layout"):
    """Return the `NothingFound` error of a folder, which says what the folder holds instead.

    expected: the expected layout in words. what: what is missing.
    """
    endings = {}  # ending -> list of names
    for file in walk_data(data_dir):
        endings.setdefault(ending_of(file.name), []).append(file.name)
    by_number = sorted(endings, key=lambda ending: (-len(endings[ending]), ending))
    shown = [_described(ending, endings[ending]) for ending in by_number[:MOST_ENDINGS]]
    rest = sum(len(endings[ending]) for ending in by_number[MOST_ENDINGS:])
    if rest:
        shown.append(f"{rest} others")
    found = f"no {what}" + (f", only {', '.join(shown)}" if shown else "")
    return found_expected(f"--data_dir {str(data_dir)!r}", found, expected, _advice(by_number), NothingFound)


def ending_of(name):
    """Return the ending of a file name in lower case, such as ".nii.gz"; "" if there is none."""
    path = PurePath(name.lower())
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def _described(ending, names):
    kind = ending or "without an ending"
    more = ", …" if len(names) > MOST_NAMES else ""
    return f"{len(names)} {kind} ({', '.join(names[:MOST_NAMES])}{more})"


def _advice(endings):
    """Return the advice for the most frequent ending that has one."""
    known = CONVERSIONS | ANNOTATIONS
    return next((known[ending] for ending in endings if ending in known), "Check the path.")

"""BraTS 2018 to 2023: folders of volumes with one NIfTI file per modality, used slice by slice."""

import itertools
import re

import blobfile as bf

from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.formats.transforms import ZSCORE_RULE, zscore
from guided_diffusion_core.data.formats.volumes import stem
from guided_diffusion_core.data.found import find_files, nothing_found
from guided_diffusion_core.data.layout import VolumeLayout
from guided_diffusion_core.data.splits import choose_unless_test
from guided_diffusion_core.data.volume_cases import CaseFiles, VolumeParts, unique_cases
from guided_diffusion_core.data.walk import leave_out
from guided_diffusion_core.system.files import require_folder

MODALITIES = ("t1", "t1ce", "t2", "flair")  # in the original's order of channels
LABEL_PART = "seg"
PARTS = VolumeParts(MODALITIES, LABEL_PART, (zscore,) * len(MODALITIES), ZSCORE_RULE)
# The last word of a file name (in any case) -> part. 2018 to 2021 use the parts themselves, 2023 uses other words.
PART_NAMES = {
    "t1": "t1",
    "t1n": "t1",
    "t1ce": "t1ce",
    "t1c": "t1ce",
    "t2": "t2",
    "t2w": "t2",
    "flair": "flair",
    "t2f": "flair",
    "seg": LABEL_PART,
}
FILE = re.compile(rf"(?:(?P<name>.*)[_-])?(?P<part>{'|'.join(PART_NAMES)})", re.IGNORECASE)
STRAY_LABELS = re.compile(r"_segm$", re.IGNORECASE)  # BraTS20_Training_355 has W39_1998.09.19_Segm.nii
# The necrotic core has code 1 and the edema code 2. The enhancing tumour has code 4 up to 2021 and code 3 from 2023 on.
REGIONS = LabelMap(
    names=("whole_tumour", "tumour_core", "enhancing"),
    values=(None, frozenset({1, 3, 4}), frozenset({3, 4})),
    known=frozenset({0, 2}),
    exclusive=frozenset({3, 4}),
)
DEFAULT_LABELS = ("whole_tumour",)
EXPECTED = (
    "folders of BraTS volumes such as BraTS2021_00000/BraTS2021_00000_flair.nii.gz, with "
    f"{', '.join(MODALITIES)} and, for training and scoring, {LABEL_PART}"
)


class BratsFiles(CaseFiles):
    """The files of one BraTS case. Its parts are the `MODALITIES` and "seg"."""

    def label_map_of_case(self, label_map):
        """Return the label map of this case, in which code 4 must not occur from 2023 on.

        Since 2023 (BraTS-GLI-00000-000) code 3 is the enhancing tumour; code 4 is not a tumour where it occurs.
        """
        is_since_2023 = self.name.lower().startswith("brats-")
        return label_map.without(4) if is_since_2023 else label_map


def find_cases(data_dir, split):
    """Return the cases of a split under a folder, a list of `BratsFiles` by name.

    The test set is everything under the folder, see `splits.choose_unless_test`.

    The files of a case are in one folder and have the same name up to the last "_" or "-", which the modality
    follows in any case. A file that is named by its modality only gets the name of its folder. A file *_Segm holds
    the labels if its folder has one case only and that case has no other labels.
    Raises `UserError` if the folder is missing or holds no such file, if two files claim one modality of a case, or
    if two cases have the same name.
    """
    data_dir = require_folder(data_dir, "--data_dir", EXPECTED)
    files = find_files(data_dir, stem)
    if not any(_match(file) for file in files):
        raise nothing_found(data_dir, EXPECTED)
    groups = {}  # (folder, case name) -> part -> list of paths
    others = {}  # folder -> list of other NIfTI files
    for file in choose_unless_test(files, split, f"--data_dir {data_dir!r}", _case_of):
        match = _match(file)
        if match:
            part = PART_NAMES[match["part"].lower()]
            groups.setdefault((file.folder, _case_of(file)), {}).setdefault(part, []).append(file.path)
        else:
            others.setdefault(file.folder, []).append(file)
    _assign_stray_labels(groups, others)
    for file in itertools.chain(*others.values()):
        leave_out("volume file of unknown modality", file.shown)
    names = {folder: [file.name for file in found] for folder, found in others.items()}
    return unique_cases(groups, names, data_dir, BratsFiles)


def _match(file):
    """Return the match of a file's name with `FILE`, or None."""
    return FILE.fullmatch(stem(file.name) or "")


def _case_of(file):
    """Return the name of the case of a file; a file that is named by its modality only has its folder's name."""
    match = _match(file)
    if match and match["name"]:
        return match["name"]
    return file.parts[-1] if file.parts else bf.basename(file.root.rstrip("/"))


def _assign_stray_labels(groups, others):
    """Move a label file with a name of its own to the only case of its folder, if that case has no labels."""
    for folder, files in others.items():
        cases = [parts for (case_folder, _), parts in groups.items() if case_folder == folder]
        stray = [file for file in files if STRAY_LABELS.search(stem(file.name))]
        if len(cases) == len(stray) == 1 and LABEL_PART not in cases[0]:
            cases[0][LABEL_PART] = [stray[0].path]
            files.remove(stray[0])


def _signs(files):
    """Return the name of one file for each case with at least two modalities."""
    modalities = {}  # (folder, case) -> modality -> name of a file
    for file in files:
        match = _match(file)
        part = PART_NAMES[match["part"].lower()] if match else LABEL_PART
        if part != LABEL_PART:
            modalities.setdefault((file.parts, _case_of(file)), {})[part] = file.shown
    return [next(iter(found.values())) for found in modalities.values() if len(found) > 1]


LAYOUT = VolumeLayout(
    name="BRATS",
    summary="brain tumours of 2018 to 2023, whole volumes",
    order=20,
    expected=EXPECTED,
    labels=REGIONS,
    default_labels=DEFAULT_LABELS,
    find_cases=find_cases,
    parts=PARTS,
    signs=_signs,
)

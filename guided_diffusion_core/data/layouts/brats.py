"""BraTS 2018 to 2023: folders of volumes, one NIfTI file per modality, used slice by slice."""

import re

import blobfile as bf

from guided_diffusion_core.data.check.inventory import files_of_volumes
from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.formats.transforms import ZSCORE_RULE, zscore
from guided_diffusion_core.data.formats.volumes import stem
from guided_diffusion_core.data.volume_cases import (
    CACHE_BYTES,
    CaseFiles,
    VolumeDataset,
    VolumeLayout,
    unique_cases,
    volume_truths,
)
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import require_folder, walk_files

MODALITIES = ("t1", "t1ce", "t2", "flair")  # in the original's order of channels
LABELS = "seg"
# The last part of a file's name (any case): that of 2018 to 2021, and that of 2023.
PARTS = {
    "t1": "t1",
    "t1n": "t1",
    "t1ce": "t1ce",
    "t1c": "t1ce",
    "t2": "t2",
    "t2w": "t2",
    "flair": "flair",
    "t2f": "flair",
    "seg": LABELS,
}
FILE = re.compile(rf"(?:(?P<name>.*)[_-])?(?P<part>{'|'.join(PARTS)})", re.IGNORECASE)
STRAY_LABELS = re.compile(r"_segm$", re.IGNORECASE)  # W39_1998.09.19_Segm.nii of BraTS20_Training_355
# Up to 2021 the enhancing tumour has code 4, from 2023 on 3; edema is 2, the necrotic core 1.
REGIONS = LabelMap(
    names=("whole_tumour", "tumour_core", "enhancing"),
    values=(None, frozenset({1, 3, 4}), frozenset({3, 4})),
    known=frozenset({0, 2}),
    exclusive=frozenset({3, 4}),
)
DEFAULT_LABELS = ("whole_tumour",)
VOLUMES = VolumeLayout(MODALITIES, LABELS, (zscore,) * len(MODALITIES), ZSCORE_RULE)
LAYOUT = (
    "folders of BraTS volumes such as BraTS2021_00000/BraTS2021_00000_flair.nii.gz, with "
    f"{', '.join(MODALITIES)} and, for training and scoring, {LABELS}"
)


class BratsFiles(CaseFiles):
    """The files of one BraTS case; its parts are the `MODALITIES` and "seg"."""

    def meaning(self, label_map):
        """From 2023 on (BraTS-GLI-00000-000) code 3 is the enhancing tumour, and 4, where it occurs, no tumour."""
        return label_map.without(4) if self.name.lower().startswith("brats-") else label_map


def find_cases(data_dir):
    """All cases under a folder, a list of `BratsFiles` by name.

    Files of a case share their folder and their name up to the last "_" or "-", after which comes the
    modality (any case); a file named by its modality alone takes its folder's name. A file *_Segm is the
    labels of the only case of its folder that has none.
    Raises `UserError` if the folder is missing or holds no such file, if two files claim one
    modality of a case, or if two cases have one name.
    """
    data_dir = require_folder(data_dir, "--data_dir", LAYOUT)
    groups = {}
    others = {}
    for folder, file in walk_files(data_dir):
        name = stem(file)
        match = FILE.fullmatch(name or "")
        if match:
            group = groups.setdefault((folder, match["name"] or bf.basename(folder)), {})
            group.setdefault(PARTS[match["part"].lower()], []).append(bf.join(folder, file))
        elif name:
            others.setdefault(folder, []).append(file)
    if not groups:
        raise found_expected(f"--data_dir {data_dir!r}", "no volume of a known modality", LAYOUT, "Check the path.")
    _adopt_stray_labels(groups, others)
    return unique_cases(groups, others, data_dir, BratsFiles)


def _adopt_stray_labels(groups, others):
    """Give a file of labels under a name of its own to the only case of its folder, if that has none."""
    for folder, files in others.items():
        cases = [parts for (place, _), parts in groups.items() if place == folder]
        stray = [file for file in files if STRAY_LABELS.search(stem(file))]
        if len(cases) == len(stray) == 1 and LABELS not in cases[0]:
            cases[0][LABELS] = [bf.join(folder, stray[0])]
            files.remove(stray[0])


class BratsDataset(VolumeDataset):
    """Axial slices of BraTS volumes: channels t1, t1ce, t2, flair; a mask for each of `labels`.

    data_dir: folder with the cases, at any depth; all of them are used.
    labels:   value of `--labels`, names out of `REGIONS`. The rest as of `VolumeDataset`.
    """

    def __init__(
        self, data_dir, size, slices="all", need_masks=True, upstream_compat=False, cache_bytes=CACHE_BYTES, labels=""
    ):
        super().__init__(
            find_cases(data_dir),
            VOLUMES,
            REGIONS.select(labels, DEFAULT_LABELS),
            size,
            slices,
            need_masks,
            upstream_compat,
            data_dir,
            cache_bytes,
        )


def open_dataset(config, size, split, need_masks):
    """See `data.open_dataset`; all cases are used, whatever the split."""
    return BratsDataset(config.data_dir, size, config.slices, need_masks, config.upstream_compat, labels=config.labels)


def list_files(config, split, need_masks):
    """See `data.list_files`."""
    label_map = REGIONS.select(config.labels, DEFAULT_LABELS)
    return ZSCORE_RULE, files_of_volumes(find_cases(config.data_dir), VOLUMES, label_map, need_masks)


def list_truths(data_dir, slices="all", labels=""):
    """The ground truth of every case under a folder, see `volume_truths`."""
    return volume_truths(find_cases(data_dir), VOLUMES, REGIONS.select(labels, DEFAULT_LABELS), slices, data_dir)


def open_truths(config, split):
    """See `data.list_truths`."""
    return list_truths(config.data_dir, config.slices, config.labels)

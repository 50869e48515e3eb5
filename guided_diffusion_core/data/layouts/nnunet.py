"""nnU-Net's raw data sets: dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz; volumes or pictures.

Format: https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md.
"""

import re
from dataclasses import replace
from functools import partial

import blobfile as bf
import numpy as np

from guided_diffusion_core.data.check.inventory import files_of_volumes
from guided_diffusion_core.data.formats import dataset_json
from guided_diffusion_core.data.formats.dataset_json import DESCRIPTION
from guided_diffusion_core.data.formats.images import channel_values
from guided_diffusion_core.data.formats.rasters import read_header, read_raster
from guided_diffusion_core.data.formats.slices import require_all_slices
from guided_diffusion_core.data.formats.transforms import FINITE_ADVICE, resize_linear
from guided_diffusion_core.data.found import is_data, nothing_found
from guided_diffusion_core.data.layout import Layout
from guided_diffusion_core.data.pairs import Pair, PairDataset, pair_truths, require_same_size
from guided_diffusion_core.data.splits import NoSplit
from guided_diffusion_core.data.volume_cases import CaseFiles, VolumeDataset, VolumeParts, volume_truths
from guided_diffusion_core.data.walk import leave_out, walk_data
from guided_diffusion_core.errors import UserError, found_expected, join_names, report
from guided_diffusion_core.system.files import require_folder

# split -> images, labels
FOLDERS = {
    "Training": ("imagesTr", "labelsTr"),
    "Validation": ("imagesVa", "labelsVa"),
    "Test": ("imagesTs", "labelsTs"),
}
FIRST_CHANNEL = "0000"
LABEL = "label"  # the part of a case that holds its labels
CHANNEL_NUMBER = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
EXPECTED = (
    "an nnU-Net data set: dataset.json, imagesTr/CASE_0000.nii.gz (with a number for each channel), "
    "labelsTr/CASE.nii.gz, and imagesTs and labelsTs for testing (imagesVa and labelsVa for validation)"
)
ADVICE = "Add what is missing, or remove the other files."


def find_root(data_dir):
    """Return the folder of dataset.json: the folder of data, or the only folder below it that has such a file.

    Raises `UserError` if there is none.
    """
    data_dir = require_folder(data_dir, "--data_dir", EXPECTED)
    if bf.exists(bf.join(data_dir, DESCRIPTION)):
        return data_dir
    found = [file.path for file in walk_data(data_dir) if file.name == DESCRIPTION]
    if len(found) == 1:
        return bf.dirname(found[0])
    if not found:
        raise nothing_found(data_dir, EXPECTED, DESCRIPTION)
    raise found_expected(
        f"--data_dir {data_dir!r}",
        f"{len(found)} data sets ({join_names(found)})",
        EXPECTED,
        "Name the folder of one of them.",
    )


def read_description(root):
    """Return the `Description` of a data set in a folder. Raises `UserError` for a malformed dataset.json."""
    return dataset_json.read_description(bf.join(root, DESCRIPTION))


def volume_parts(description):
    """Return the `VolumeParts` of a case."""
    return VolumeParts(description.parts, LABEL, description.scales, description.normalisation)


def find_cases(root, split, description, with_labels):
    """Return the cases of a split, a list of `CaseFiles` by name, with the parts "0000", "0001", … and "label".

    root:        the folder of dataset.json.
    with_labels: True to look for labels; every case must have labels then, and all labels must have a case.
    Reports one `UserError` for all files that are missing, superfluous or without the number of a channel.
    """
    image_folder, label_folder = FOLDERS[split]
    images = _files(root, image_folder, description.ending)
    labels = _files(root, label_folder, description.ending)
    if split == "Validation" and not images:
        raise found_expected(f"--data_dir {root!r}", f"no {image_folder}", EXPECTED, "Add it.", NoSplit)
    cases = {}  # case -> part -> path
    unnumbered = []
    for name, path in images.items():
        match = CHANNEL_NUMBER.fullmatch(name)
        if match and match["channel"] in description.parts:
            cases.setdefault(match["case"], {})[match["channel"]] = path
        else:
            unnumbered.append(path)
    problems = {
        "files without a channel's number": unnumbered,
        "channels missing": _missing_channels(cases, description),
    }
    if with_labels:
        problems["cases without labels"] = [case for case in cases if case not in labels]
        problems["labels without an image"] = [path for case, path in labels.items() if case not in cases]
        for case, paths in cases.items():
            if case in labels:
                paths[LABEL] = labels[case]
    if any(problems.values()) or not cases:
        _report_problems(f"--data_dir {root!r}, {image_folder}", problems)
    folder = bf.join(root, image_folder)
    return [CaseFiles(case, folder, paths) for case, paths in sorted(cases.items())]


def _missing_channels(cases, description):
    """Return the names of the image files that are missing, without their ending."""
    missing = []
    for case, paths in cases.items():
        if not _is_colour_picture(paths, description):
            missing += [f"{case}_{part}" for part in description.parts if part not in paths]
    return missing


def _is_colour_picture(parts, description):
    """Return True if the parts of a case are one file with three channels, as nnU-Net stores colour pictures."""
    images = [part for part in parts if part != LABEL]
    return description.has_pictures and len(description.channels) == 3 and images == [FIRST_CHANNEL]


def _report_problems(where, problems):
    """Report one `UserError` for all problems of a split.

    problems: dict of kind -> list of files or cases; all lists are empty if the split has no case.
    """
    found = [f"{len(members)} {kind} ({join_names(members)})" for kind, members in problems.items() if members]
    summary = f"{where}: found {'; '.join(found) or 'no case'}; expected {EXPECTED}. {ADVICE}"
    each = []
    for kind, members in problems.items():
        each += [found_expected(member, kind, EXPECTED, ADVICE) for member in members]
    report(UserError(summary), each)


def _files(root, folder, ending):
    """Return the files in a folder as a dict of name without ending -> path; {} if there is no such folder."""
    path = bf.join(root, folder)
    if not bf.isdir(path):
        return {}
    files = {}
    for file in walk_data(path):
        # the folder may lie in a folder of the same name, as two unpackings of an archive leave it
        if set(file.parts) <= {folder} and file.name.endswith(ending):
            files[file.name[: -len(ending)]] = file.path
        elif is_data(file.name):
            leave_out(f"file below a folder of cases, or with another ending than {ending}", f"{folder}/{file.shown}")
    return files


class PictureChannels(PairDataset):
    """Pictures whose channels are in separate files, or three channels in one colour picture.

    cases:       list of `CaseFiles`.
    description: `Description`.
    The other arguments are those of `PairDataset`.
    """

    def __init__(self, cases, description, label_map, size, need_masks, upstream_compat, data_dir):
        self.in_channels = len(description.channels)
        self.normalisation = description.normalisation
        self._files = {files.name: picture_scales(files, description) for files in cases}
        super().__init__(_pairs(cases), label_map, size, need_masks, upstream_compat, data_dir, EXPECTED)

    def _checked_header(self, pair):
        header = super()._checked_header(pair)
        for path in self._files[pair.name]:
            require_same_size(path, read_header(path), pair.image, header)
        return header

    def _read(self, pair):
        scaled = [scaled_channels(read_raster(path), path, scales) for path, scales in self._files[pair.name].items()]
        return resize_linear(np.concatenate(scaled), (self.size, self.size))


def picture_scales(files, description):
    """Return the intensity rules of the channels that each picture of a case holds: dict of path -> tuple of functions.

    A case is one file for each channel, or one picture of all channels.
    """
    if _is_colour_picture(files.paths, description):
        return {files.paths[FIRST_CHANNEL]: description.scales}
    scales = zip(description.parts, description.scales)
    return {files.paths[part]: (scale,) for part, scale in scales if part in files.paths}


def scaled_channels(raster, path, scales):
    """Return the channels of a picture as network input, float32 (C, H, W).

    scales: the intensity rules of its C channels.
    Raises `UserError` for another number of channels, and for values that a rule refuses.
    """
    planes = channel_values(raster)
    if len(planes) != len(scales):
        raise found_expected(
            path,
            f"{len(planes)} channels in one file",
            f"{len(scales)} as in {DESCRIPTION}",
            "Correct the file or dataset.json.",
        )
    try:
        return np.stack([scale(plane) for scale, plane in zip(scales, planes)])
    except ValueError as error:
        raise found_expected(path, str(error), "finite numbers", FINITE_ADVICE) from error


def _pairs(cases):
    return [Pair(files.name, files.paths.get(FIRST_CHANNEL), files.paths.get(LABEL)) for files in cases]


class NnunetLayout(Layout):
    """The layout of nnU-Net's raw data sets. dataset.json describes the channels, the labels and the files."""

    def choose_labels(self, config, need_values):
        """Return the `LabelMap` of the labels that a `DataConfig` chooses; the default is all of dataset.json."""
        labels = read_description(find_root(config.data_dir)).labels
        return labels.select(config.labels, labels.names)

    def open_dataset(self, config, size, split, need_masks):
        """Return the `Dataset` of a split, see `data.open_dataset`."""
        root = find_root(config.data_dir)
        description = read_description(root)
        label_map = self.label_map(config, need_masks)
        cases = find_cases(root, split, description, need_masks)
        settings = (need_masks, config.upstream_compat, config.data_dir)
        if description.has_pictures:
            require_all_slices(config.slices)
            return PictureChannels(cases, description, label_map, size, *settings)
        parts = volume_parts(description)
        return VolumeDataset(cases, parts, label_map, size, config.slices, *settings, orientation=config.orientation)

    def list_truths(self, config, split):
        """Return the list of `Truth` of a split, see `data.list_truths`.

        The folder of images may be missing, unless `--slices` depends on the images.
        """
        root = find_root(config.data_dir)
        description = read_description(root)
        label_map = self.label_map(config, True)
        image_folder, label_folder = FOLDERS[split]
        if _files(root, image_folder, description.ending):
            cases = find_cases(root, split, description, True)
        else:
            folder = bf.join(root, label_folder)
            labels = _files(root, label_folder, description.ending)
            cases = [CaseFiles(case, folder, {LABEL: path}) for case, path in labels.items()]
        if not cases:
            raise found_expected(f"--data_dir {config.data_dir!r}", f"no {label_folder}", EXPECTED, "Check the path.")
        if description.has_pictures:
            require_all_slices(config.slices)
            return pair_truths(_pairs(cases), label_map, config.data_dir, EXPECTED)
        parts = volume_parts(description)
        return volume_truths(cases, parts, label_map, config.slices, config.data_dir, config.orientation)

    def list_files(self, config, split, need_masks):
        """Return (normalisation, list of `ListedFile`) of a split, see `data.list_files`."""
        root = find_root(config.data_dir)
        description = read_description(root)
        label_map = self.label_map(config, True)
        labels = _files(root, FOLDERS[split][1], description.ending)
        cases = find_cases(root, split, description, need_masks or bool(labels))
        # `find_cases` has reported the missing parts: no part is required here
        label_part_only = VolumeParts((), LABEL, (), "")
        files = files_of_volumes(cases, label_part_only, label_map, False)
        if description.has_pictures:
            scales = {}
            for case in cases:
                scales.update(picture_scales(case, description))
            files = [_with_scales(file, scales) for file in files]
        return description.normalisation, files


def _with_scales(file, scales):
    """Return the `ListedFile` of a picture, which knows how training scales it; masks stay as they are."""
    if file.label_map is not None:
        return file
    return replace(file, require=partial(scaled_channels, scales=scales[file.path]))


def _signs(files):
    """Return the names of dataset.json next to a folder of images, and of numbered channels in such folders."""
    image_folders = {images for images, _ in FOLDERS.values()}
    channels = [
        file.shown
        for file in files
        if image_folders & set(file.parts) and CHANNEL_NUMBER.fullmatch(file.name.split(".")[0])
    ]
    return [file.shown for file in files if file.name == DESCRIPTION and image_folders & _folders(files)] + channels


def _folders(files):
    return {part for file in files for part in file.parts}


LAYOUT = NnunetLayout(
    name="NNUNET",
    summary="nnU-Net's raw data sets, volumes or pictures",
    order=80,
    expected=EXPECTED,
    signs=_signs,
)

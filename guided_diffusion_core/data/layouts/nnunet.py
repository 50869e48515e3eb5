"""nnU-Net's raw data sets: dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz; volumes or pictures.

Format: https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md; that of version 1 is read, too.
"""

import json
import re
from dataclasses import dataclass

import blobfile as bf
import numpy as np

from guided_diffusion_core.data.check.inventory import files_of_volumes
from guided_diffusion_core.data.formats.images import channel_values, image_size
from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.formats.slices import require_all_slices
from guided_diffusion_core.data.formats.transforms import channel_rule, resize_linear
from guided_diffusion_core.data.formats.volumes import SUFFIXES
from guided_diffusion_core.data.pairs import Pair, PairDataset, pair_truths
from guided_diffusion_core.data.volume_cases import CaseFiles, VolumeDataset, VolumeLayout, volume_truths
from guided_diffusion_core.errors import UserError, found_expected, join_names, report
from guided_diffusion_core.system.files import read_bytes, require_folder

DESCRIPTION = "dataset.json"
PICTURES = (".png", ".bmp", ".tif", ".tiff")
FOLDERS = {"Training": ("imagesTr", "labelsTr"), "Test": ("imagesTs", "labelsTs")}
LABEL = "label"  # the part of a case that holds its labels
CHANNEL_NUMBER = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
LAYOUT = (
    "an nnU-Net data set: dataset.json, imagesTr/CASE_0000.nii.gz (a number for each channel), "
    "labelsTr/CASE.nii.gz, and imagesTs and labelsTs for testing"
)


@dataclass(frozen=True)
class Description:
    """What dataset.json says: names of the channels, the `LabelMap` of all labels, the files' ending."""

    channels: tuple
    labels: LabelMap
    ending: str

    @property
    def parts(self):
        """The channels as files are numbered, "0000" on."""
        return tuple(f"{number:04d}" for number in range(len(self.channels)))

    @property
    def normalisation(self):
        """The channels' rules in words, for the checkpoint."""
        return "; ".join(f"channel {part}: {channel_rule(name)[0]}" for part, name in zip(self.parts, self.channels))

    @property
    def scales(self):
        """The channels' rules as functions."""
        return tuple(channel_rule(name)[1] for name in self.channels)


def read_description(data_dir):
    """The `Description` of a data set. Raises `UserError` for a missing or malformed dataset.json."""
    path = bf.join(require_folder(data_dir, "--data_dir", LAYOUT), DESCRIPTION)
    if not bf.exists(path):
        raise found_expected(f"--data_dir {str(data_dir)!r}", f"no {DESCRIPTION}", LAYOUT, "Check the path.")
    try:
        tree = json.loads(read_bytes(path))
        channels = tree.get("channel_names", tree.get("modality"))
        names = tuple(str(channels[str(number)]) for number in range(len(channels)))
        description = Description(names, _label_map(tree["labels"]), tree.get("file_ending", SUFFIXES[1]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise found_expected(
            path,
            f"something that cannot be read ({type(error).__name__}: {error})",
            'channel_names such as {"0": "T2"} and labels such as {"background": 0, "tumour": 1}',
            "Correct the file.",
        ) from error
    if not names or description.ending not in SUFFIXES + PICTURES:
        raise found_expected(
            path,
            f"{len(names)} channels in files {description.ending}",
            f"at least one, in files {', '.join(SUFFIXES + PICTURES)}",
            "Convert the files.",
        )
    return description


def _label_map(labels):
    """The `LabelMap` of dataset.json's labels, names in lower case with _ for what is neither letter nor number.

    Version 1 has numbers as keys and names as values. Raises ValueError for what is neither.
    """
    if all(name.isdigit() for name in labels):
        labels = {name: int(value) for value, name in labels.items()}
    values = {}
    for name, value in labels.items():
        short = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        found = frozenset(value if isinstance(value, list) else [value])
        if short in values or not found or not all(type(number) is int for number in found):
            raise ValueError(f"label {name!r} with {value!r}")
        values[short] = found
    ignored = values.pop("ignore", frozenset())
    hint = f"Label {min(ignored)} means ignore, but here every pixel counts: complete the labels." if ignored else ""
    background = values.pop("background", frozenset({0}))
    return LabelMap(tuple(values), tuple(values.values()), background, hint=hint)


def find_cases(data_dir, split, description, with_labels):
    """The cases of a split, a list of `CaseFiles` by name, whose parts are "0000" … and "label".

    with_labels: whether labels are looked for; then every case must have some and they no other case.
    Raises one `UserError` for all files that are missing, too many or not named by a channel.
    """
    images, labels = (_files(data_dir, folder, description.ending) for folder in FOLDERS[split])
    cases = {}
    strange = []
    for name, path in images.items():
        match = CHANNEL_NUMBER.fullmatch(name)
        if match and match["channel"] in description.parts:
            cases.setdefault(match["case"], {})[match["channel"]] = path
        else:
            strange.append(path)
    lacking = [
        f"{case}_{part}"
        for case, paths in cases.items()
        for part in description.parts
        if part not in paths and not (part != "0000" and _holds_all_channels(description, paths))
    ]
    problems = [("files without a channel's number", strange), ("channels missing", lacking)]
    if with_labels:
        problems += [
            ("cases without labels", [case for case in cases if case not in labels]),
            ("labels without an image", [path for case, path in labels.items() if case not in cases]),
        ]
        cases = {case: {**paths, LABEL: labels[case]} if case in labels else paths for case, paths in cases.items()}
    found = [f"{len(which)} {what} ({join_names(which)})" for what, which in problems if which]
    if found or not cases:
        each = [
            found_expected(which, what, LAYOUT, "Add what is missing or take the others out.")
            for what, members in problems
            for which in members
        ]
        report(
            UserError(
                f"--data_dir {str(data_dir)!r}, {FOLDERS[split][0]}: found "
                f"{'; '.join(found) or 'no case'}; expected {LAYOUT}. Add what is missing or take the "
                "others out."
            ),
            each,
        )
    folder = bf.join(str(data_dir), FOLDERS[split][0])
    return [CaseFiles(case, folder, paths) for case, paths in sorted(cases.items())]


def _holds_all_channels(description, paths):
    """Whether a case may be one colour picture, which nnU-Net keeps as one file of three channels."""
    return description.ending in PICTURES and len(description.channels) == 3 and tuple(paths) == ("0000",)


def _files(data_dir, folder, ending):
    """Name without ending -> path of a folder's files, {} without the folder."""
    folder = bf.join(str(data_dir), folder)
    if not bf.isdir(folder):
        return {}
    return {
        file[: -len(ending)]: bf.join(folder, file)
        for file in sorted(bf.listdir(folder))
        if file.endswith(ending) and not file.startswith(".")
    }


class PictureChannels(PairDataset):
    """Pictures whose channels lie in files of their own, or three in one colour picture.

    cases: list of `CaseFiles`. description: `Description`. The rest as of `PairDataset`.
    """

    def __init__(self, cases, description, label_map, size, need_masks, upstream_compat, data_dir):
        self.in_channels = len(description.channels)
        self.normalisation = description.normalisation
        self._scales = description.scales
        self._files = {
            files.name: [files.paths[part] for part in description.parts if part in files.paths] for files in cases
        }
        super().__init__(_pairs(cases), label_map, size, need_masks, upstream_compat, data_dir, LAYOUT)

    def _checked_shape(self, pair):
        shape = super()._checked_shape(pair)
        for path in self._files[pair.name]:
            if image_size(path) != shape:
                raise found_expected(
                    path,
                    f"{image_size(path)} pixels (height, width)",
                    f"{shape} as in {pair.image}",
                    "Bring the channels to one size.",
                )
        return shape

    def _read(self, pair):
        paths = self._files[pair.name]
        planes = np.concatenate([channel_values(path) for path in paths])  # (C, H, W)
        if len(planes) != self.in_channels:
            raise found_expected(
                paths[0],
                f"{len(planes)} channels in {len(paths)} files",
                f"{self.in_channels} as in {DESCRIPTION}",
                "Correct the files or dataset.json.",
            )
        try:
            scaled = np.stack([scale(plane) for scale, plane in zip(self._scales, planes)])
        except ValueError as error:
            raise found_expected(paths[0], str(error), "finite numbers", "Replace the file.") from error
        return resize_linear(scaled, (self.size, self.size))


def open_dataset(config, size, split, need_masks):
    """See `data.open_dataset`."""
    description = read_description(config.data_dir)
    label_map = description.labels.select(config.labels, description.labels.names)
    cases = find_cases(config.data_dir, split, description, need_masks)
    if description.ending in PICTURES:
        require_all_slices(config.slices)
        return PictureChannels(cases, description, label_map, size, need_masks, config.upstream_compat, config.data_dir)
    return VolumeDataset(
        cases, _layout(description), label_map, size, config.slices, need_masks, config.upstream_compat, config.data_dir
    )


def open_truths(config, split):
    """See `data.list_truths`; images may lack, where `--slices` does not ask for them."""
    description = read_description(config.data_dir)
    label_map = description.labels.select(config.labels, description.labels.names)
    if _files(config.data_dir, FOLDERS[split][0], description.ending):
        cases = find_cases(config.data_dir, split, description, True)
    else:
        folder = FOLDERS[split][1]
        labels = _files(config.data_dir, folder, description.ending)
        cases = [CaseFiles(case, bf.join(config.data_dir, folder), {LABEL: path}) for case, path in labels.items()]
    if not cases:
        raise found_expected(f"--data_dir {config.data_dir!r}", f"no {FOLDERS[split][1]}", LAYOUT, "Check the path.")
    if description.ending in PICTURES:
        require_all_slices(config.slices)
        return pair_truths(_pairs(cases), label_map, config.data_dir, LAYOUT)
    return volume_truths(cases, _layout(description), label_map, config.slices, config.data_dir)


def _layout(description):
    return VolumeLayout(description.parts, LABEL, description.scales, description.normalisation)


def _pairs(cases):
    return [Pair(files.name, files.paths.get("0000"), files.paths.get(LABEL)) for files in cases]


def list_files(config, split, need_masks):
    """See `data.list_files`."""
    description = read_description(config.data_dir)
    label_map = description.labels.select(config.labels, description.labels.names)
    labels = _files(config.data_dir, FOLDERS[split][1], description.ending)
    cases = find_cases(config.data_dir, split, description, need_masks or bool(labels))
    return description.normalisation, files_of_volumes(cases, VolumeLayout((), LABEL, (), ""), label_map, False)

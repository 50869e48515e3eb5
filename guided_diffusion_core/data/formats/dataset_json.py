"""Read dataset.json, nnU-Net's description of a data set.

Format: https://github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md. The format of version 1 is read too.
"""

import json
from dataclasses import dataclass

from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.formats.transforms import channel_rule
from guided_diffusion_core.data.formats.volumes import SUFFIXES
from guided_diffusion_core.data.names import is_label_character, normal_form
from guided_diffusion_core.errors import found_expected
from guided_diffusion_core.system.files import read_bytes

DESCRIPTION = "dataset.json"
PICTURES = (".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Description:
    """The content of dataset.json.

    channels: names of the channels.
    labels:   `LabelMap` of all labels.
    ending:   ending of all image and label files.
    """

    channels: tuple
    labels: LabelMap
    ending: str

    @property
    def has_pictures(self):
        """Return True for a data set of 2D pictures, False for one of volumes."""
        return self.ending in PICTURES

    @property
    def parts(self):
        """Return the numbers of the channels as in file names, from "0000" on."""
        return tuple(f"{number:04d}" for number in range(len(self.channels)))

    @property
    def normalisation(self):
        """Return the intensity rules of the channels in words, for the checkpoint."""
        rules = [f"channel {part}: {channel_rule(name)[0]}" for part, name in zip(self.parts, self.channels)]
        return "; ".join(rules)

    @property
    def scales(self):
        """Return the intensity rules of the channels as functions."""
        return tuple(channel_rule(name)[1] for name in self.channels)


def read_description(path):
    """Return the `Description` in a dataset.json file. Raises `UserError` for a malformed one."""
    try:
        tree = json.loads(read_bytes(path))
        channels = tree.get("channel_names", tree.get("modality"))  # version 1 calls them modality
        names = tuple(str(channels[str(number)]) for number in range(len(channels)))
        description = Description(names, _label_map(tree["labels"]), tree.get("file_ending", SUFFIXES[1]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise found_expected(
            path,
            f"something that cannot be read ({type(error).__name__}: {error})",
            'channel_names such as {"0": "T2"} and labels such as {"background": 0, "tumour": 1}',
            "Correct the file.",
        ) from error
    endings = SUFFIXES + PICTURES
    if not names or description.ending not in endings:
        raise found_expected(
            path,
            f"{len(names)} channels in files {description.ending}",
            f"at least one channel, in files {', '.join(endings)}",
            "Convert the files.",
        )
    return description


def _label_map(labels):
    """Return the `LabelMap` of the labels in dataset.json.

    Names become lower case, and "_" replaces everything that is neither a letter of any script nor a digit. Version 1
    has numbers as keys and names as values. Raises ValueError for labels that follow neither version.
    """
    if all(name.isdigit() for name in labels):
        labels = {name: int(value) for value, name in labels.items()}
    values = {}
    for name, value in labels.items():
        short = _short(name)
        numbers = frozenset(value if isinstance(value, list) else [value])
        if short in values or not numbers or not all(type(number) is int for number in numbers):
            raise ValueError(f"label {name!r} with {value!r}")
        values[short] = numbers
    ignored = values.pop("ignore", frozenset())
    hint = ""
    if ignored:
        hint = f"Label {min(ignored)} means ignore, but here every pixel counts: complete the labels."
    background = values.pop("background", frozenset({0}))
    return LabelMap(tuple(values), tuple(values.values()), background, hint=hint)


def _short(name):
    """Return the name of a label in lower case, with "_" in place of all that is neither a letter nor a digit."""
    letters = [letter if is_label_character(letter) else " " for letter in normal_form(name).lower()]
    return "_".join("".join(letters).split())

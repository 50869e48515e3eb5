"""What lies in a data folder: every file of every case, listed without stopping at the first problem."""

from dataclasses import dataclass

from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.errors import UserError, collecting, found_expected, report


@dataclass(frozen=True)
class ListedFile:
    """One file of a case.

    part:      a channel's name or that of the labels.
    path:      where it lies.
    label_map: `LabelMap` of a file of labels, None of an image.
    place:     number of the slice in a file of one slice, else None; the files of a case that have the same
               place must share a grid.
    """

    case: str
    part: str
    path: str
    label_map: LabelMap | None = None
    place: int | None = None


@dataclass(frozen=True)
class Inventory:
    """The files of a data set.

    normalisation: the rule that its images will be scaled by.
    unlabelled:    names of the cases without labels.
    problems:      the `UserError`s met while listing, in their order.
    """

    files: tuple
    normalisation: str
    unlabelled: tuple
    problems: tuple

    @property
    def cases(self):
        """The names of all cases, sorted."""
        return sorted({file.case for file in self.files} | set(self.unlabelled))


def take_inventory(list_files):
    """Run a layout's `list_files` and keep what it complains of: an `Inventory`.

    list_files: function without arguments that returns (normalisation, list of `ListedFile`).
    Raises `UserError` where nothing can be listed, such as for a folder that is not there.
    """
    with collecting() as problems:
        normalisation, files = list_files()
    labelled = {file.case for file in files if file.label_map is not None}
    unlabelled = tuple(sorted({file.case for file in files} - labelled))
    return Inventory(tuple(files), normalisation, unlabelled, tuple(problems))


def files_of_pairs(pairs, label_map, need_masks):
    """The files of `Pair`s, a list of `ListedFile`. Reports images without a mask, if `need_masks`, and masks
    without an image."""
    files = []
    for pair in pairs:
        if pair.image is None:
            report(
                found_expected(
                    pair.mask,
                    "a mask without an image",
                    "the image that it belongs to",
                    "Add the image, or take the mask out.",
                )
            )
        elif pair.mask is None and need_masks:
            report(
                found_expected(
                    pair.image,
                    "an image without a mask",
                    "a mask for every image",
                    "Add the mask, or take the image out.",
                )
            )
        if pair.image is not None:
            files.append(ListedFile(pair.name, "image", pair.image))
        if pair.mask is not None:
            files.append(ListedFile(pair.name, "mask", pair.mask, label_map))
    return files


def files_of_volumes(cases, layout, label_map, need_masks):
    """The files of `CaseFiles` of a `VolumeLayout`, a list of `ListedFile`. Reports the parts that lack: channels,
    and labels if `need_masks`."""
    files = []
    for case in cases:
        try:
            case.require(layout.channels + ((layout.labels,) if need_masks else ()))
        except UserError as error:
            report(error)
        for part, found in case.paths.items():
            meaning = case.meaning(label_map) if part == layout.labels else None
            places = found.items() if isinstance(found, dict) else [(None, found)]
            files += [ListedFile(case.name, part, path, meaning, place) for place, path in sorted(places)]
    return files

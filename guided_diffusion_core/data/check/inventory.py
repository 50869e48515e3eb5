"""List every file of every case in a data folder, without stopping at the first problem."""

from collections.abc import Callable
from dataclasses import dataclass

from guided_diffusion_core.data.formats.labels import LabelMap
from guided_diffusion_core.data.pairs import unpaired_errors
from guided_diffusion_core.data.walk import LeftOut, noting_left_out
from guided_diffusion_core.errors import UserError, collecting, report


@dataclass(frozen=True)
class ListedFile:
    """One file of a case.

    case:      name of the case.
    part:      name of the channel, or of the labels.
    path:      path of the file.
    label_map: `LabelMap` of a label file; None for an image.
    place:     slice number of a file that holds one slice; None for other files. The files of a case with the same
               place must have the same grid.
    require:   function (`Raster`, path) that raises the `UserError` with which training refuses a picture; None for
               other files.
    """

    case: str
    part: str
    path: str
    label_map: LabelMap | None = None
    place: int | None = None
    require: Callable | None = None


@dataclass(frozen=True)
class Inventory:
    """The files of a data set.

    files:         tuple of `ListedFile`.
    normalisation: the rule that scales the images, in words.
    unlabelled:    names of the cases without labels.
    problems:      the `UserError`s found while listing, in that order.
    left_out:      what of the folder is not used, `walk.LeftOut`.
    """

    files: tuple
    normalisation: str
    unlabelled: tuple
    problems: tuple
    left_out: LeftOut

    @property
    def cases(self):
        """Return the names of all cases, sorted."""
        return sorted({file.case for file in self.files} | set(self.unlabelled))


def take_inventory(list_files):
    """Return the `Inventory` of a data set, including the problems that its layout reports.

    list_files: function without arguments that returns (normalisation, list of `ListedFile`).
    Raises `UserError` if nothing can be listed, for example because the folder does not exist. If the layout has
    reported why nothing is left to list, as for a csv file in which every row is wrong, these reasons are the problems.
    """
    with collecting() as problems, noting_left_out() as left_out:
        try:
            normalisation, files = list_files()
        except UserError:
            if not problems:
                raise
            normalisation = ""
            files = []
    cases = {file.case for file in files}
    # a label file has a label map, an image has none
    labelled = {file.case for file in files if file.label_map is not None}
    unlabelled = tuple(sorted(cases - labelled))
    return Inventory(tuple(files), normalisation, unlabelled, tuple(problems), left_out)


def files_of_pairs(pairs, label_map, need_masks, require=None):
    """Return the files of some `Pair`s, a list of `ListedFile`.

    require: of the images, see `ListedFile`.
    Reports masks without an image and, if `need_masks`, images without a mask.
    """
    for error in unpaired_errors(pairs, need_masks):
        report(error)
    files = []
    for pair in pairs:
        if pair.image is not None:
            files.append(ListedFile(pair.name, "image", pair.image, require=require))
        if pair.mask is not None:
            files.append(ListedFile(pair.name, "mask", pair.mask, label_map))
    return files


def files_of_volumes(cases, parts, label_map, need_masks):
    """Return the files of some `CaseFiles`, a list of `ListedFile`.

    parts: `VolumeParts` of a case.
    Reports missing channels and, if `need_masks`, missing labels.
    """
    wanted = (*parts.channels, parts.labels) if need_masks else parts.channels
    files = []
    for case in cases:
        try:
            case.require(wanted)
        except UserError as error:
            report(error)
        # the parts in the order of the training, which compares their grids with that of the first
        for part, found in sorted(case.paths.items(), key=lambda item: _place(item[0], wanted)):
            map_of_file = case.label_map_of_case(label_map) if part == parts.labels else None
            # a part is one file, or a dict of slice number -> file
            places = found.items() if isinstance(found, dict) else [(None, found)]
            files += [ListedFile(case.name, part, path, map_of_file, place) for place, path in sorted(places)]
    return files


def _place(part, wanted):
    """Return the place of a part in a tuple of parts, behind them for another part."""
    return wanted.index(part) if part in wanted else len(wanted)

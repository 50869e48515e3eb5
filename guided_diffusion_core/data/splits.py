"""The splits of a data set: which folders hold the training, the validation and the test set.

A folder belongs to a split if its name contains a word of `WORDS` as a whole word: `ISIC-2017_Training_Data`,
`imagesTr`, `test_images`, `val`, `train2017`. Words end at capitals, digits and all other characters that are no
letters, so that `Valencia`, `mitral_valve`, `strain` and `Testament` belong to no split.
"""

import re
from functools import lru_cache

from guided_diffusion_core.data.walk import leave_out, walk_data
from guided_diffusion_core.errors import UserError, found_expected, join_names

# split -> words in folder names, in lower case
WORDS = {
    "Training": ("train", "training", "trainval"),
    "Validation": ("val", "valid", "validation", "eval", "evaluation"),
    "Test": ("test", "testing"),
}
SHORT = {"Training": "train", "Validation": "val", "Test": "test"}  # the name of a split in messages
# nnU-Net's endings, which mean a split only behind one of the words before them: imagesTr, labelsTs
_ENDINGS = {"tr": "Training", "va": "Validation", "ts": "Test"}
_BEFORE_ENDINGS = ("images", "labels", "masks", "imgs")
_SPLITS = {word: split for split, words in WORDS.items() for word in words}
_SPLIT_WORD = re.compile(
    rf"({'|'.join(sorted(_SPLITS, key=len, reverse=True))})(set|data|dataset|images?|imgs?|masks?|labels?|gt|)"
)
_RUN = re.compile(r"[^\W\d_]+|\d+")  # letters of any script, or digits


class NoSplit(UserError):
    """A folder has no folder of the split that was asked for."""


def folder_words(name):
    """Return the words of a name in lower case: DRIVETest_2017 gives drive, test and 2017."""
    words = []
    for run in _RUN.findall(name):
        start = 0
        for place in range(1, len(run)):
            if _begins_word(run, place):
                words.append(run[start:place].lower())
                start = place
        words.append(run[start:].lower())
    return words


def _begins_word(run, place):
    """Return whether a word begins at a place among letters: at a capital, or where a script with capitals begins."""
    letter = run[place]
    before = run[place - 1]
    if _has_case(letter) != _has_case(before):
        return True
    ends_capitals = before.isupper() and run[place + 1 : place + 2].islower()  # the T of DRIVETest
    return letter.isupper() and (before.islower() or ends_capitals)


def _has_case(letter):
    return letter.lower() != letter.upper()


@lru_cache(maxsize=1024)
def parse_folder(name):
    """Return (split, rest) of a folder's name.

    split: "Training", "Validation" or "Test", or None if the name holds the word of no split, or those of several.
           Words of training and validation together mean training.
    rest:  the other words joined, in lower case, without numbers if there is a split: "images" for images_train2017.
    """
    splits = []
    rest = []
    for word in folder_words(name):
        match = _SPLIT_WORD.fullmatch(word)
        if match:
            splits.append(_SPLITS[match[1]])
            rest.append(match[2])
        elif word in _ENDINGS and rest and rest[-1] in _BEFORE_ENDINGS:
            splits.append(_ENDINGS[word])
        else:
            rest.append(word)
    found = set(splits)
    if found == {"Training", "Validation"}:
        found = {"Training"}
    if len(found) != 1:
        return None, "".join(rest)
    return found.pop(), "".join(word for word in rest if not word.isdigit())


def split_folder(parts, case=None):
    """Return (split, number of folders down to the one that names it) of a file in some folders, or (None, 0).

    The lowest folder that names a split decides. A folder that is named after the case of the file, such as
    BraTS20_Training_001, names none.

    parts: the names of the folders, the highest first. case: name of the case, or None.
    """
    for depth in range(len(parts), 0, -1):
        name = parts[depth - 1]
        if case and name.startswith(case):
            continue
        split, _ = parse_folder(name)
        if split:
            return split, depth
    return None, 0


def folder_of(split):
    """Return the kind in which a folder of a split is left out (`walk.leave_out`)."""
    return f"folder named {SHORT[split]}"


def has_split(data_dir, split):
    """Return whether some file of a folder lies in a folder of a split."""
    return any(split_folder(file.parts)[0] == split for file in walk_data(data_dir))


def choose_split(files, split, where, is_required, case_of=None):
    """Return the files of a split, a list of `DataFile`, and note those that are left out (`walk.leave_out`).

    These are the files in folders of the split. If there is no such folder, they are those in folders of no split. If
    there are only folders of other splits, they are all files, or none if the split is required.

    files:       list of `DataFile`.
    where:       the folder of data, for the error.
    is_required: raise `NoSplit` if only folders of other splits are there. The validation set is always required, and
                 has to have folders of its own.
    case_of:     function of a `DataFile` that returns the name of its case, see `split_folder`; None for no such rule.
    """
    places = {}  # (split or None, its folder) -> list of files
    for file in files:
        found, depth = split_folder(file.parts, case_of(file) if case_of else None)
        places.setdefault((found, "/".join(file.parts[:depth])), []).append(file)
    splits = {found for found, _ in places}
    if not files:
        return []
    if split in splits:
        wanted = split
    elif None in splits and split != "Validation":
        wanted = None
    elif is_required or split == "Validation":
        raise _no_split(where, split, sorted(folder or "folders of no split" for _, folder in places))
    else:
        return list(files)
    kept = set()
    for (found, folder), members in places.items():
        if found == wanted:
            kept.update(members)
        else:
            _note(found, folder, members, split)
    return [file for file in files if file in kept]


def choose_unless_test(files, split, where, case_of=None):
    """Return the files of a split as `choose_split` does, but all files for the test set.

    BraTS and REFUGE2 are handed out in single folders without a split, each of which is sampled and scored whole.
    """
    return list(files) if split == "Test" else choose_split(files, split, where, False, case_of)


def _note(found, folder, members, split):
    """Note the files in one folder that belong to another split, or to none."""
    if found is not None:
        leave_out(folder_of(found), folder)
        return
    for file in members:
        leave_out(f"file outside of the folders named {SHORT[split]}", file.shown)


def _no_split(where, split, folders):
    return found_expected(
        where,
        f"only {join_names(folders)}",
        f"a folder with {SHORT[split]!r} in its name",
        "Name the folder of the split.",
        NoSplit,
    )

"""Names of cases, files and labels in any script: one Unicode form, in which they are compared."""

import unicodedata

LABEL_FORM = "letters of any script, digits, _ and -"


def normal_form(name):
    """Return a name in the Unicode normal form NFC, in which the same text has the same characters."""
    return unicodedata.normalize("NFC", name)


def forms(name):
    """Return the forms in which a file system may hold a name: as it is, composed (NFC) and decomposed (NFD)."""
    return tuple(dict.fromkeys((name, normal_form(name), unicodedata.normalize("NFD", name))))


def name_key(name):
    """Return the form of a name in which names are compared: NFC, without case."""
    return normal_form(normal_form(name).lower())


def is_label_character(character):
    """Return whether a character may be in the name of a label without a separator: a letter, its mark or a digit."""
    return unicodedata.category(character)[0] in "LMN"


def is_label_name(name):
    """Return whether a text names a label, and so can be part of a file's name: see `LABEL_FORM`, in lower case."""
    is_key = name == name_key(name)
    return bool(name) and is_key and name[0] != "-" and all(is_label_character(c) or c in "_-" for c in name)

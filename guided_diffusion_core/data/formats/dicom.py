"""Check the lengths in a DICOM file before a library allocates what they claim.

Format: DICOM PS3.5, section 7.1 (data elements) and PS3.10, section 7 (files).
"""

import os
import struct

from guided_diffusion_core.errors import found_expected

PREAMBLE = 128  # bytes before the letters DICM
MAGIC = b"DICM"
UNDEFINED = 0xFFFFFFFF  # a length that a delimiter ends
# value representations whose length has 32 bits, after two bytes that are reserved
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
TRANSFER_SYNTAX = (0x0002, 0x0010)
PIXELS = (0x7FE0, 0x0010)
ITEMS = 0xFFFE  # group of the items of a sequence and of their delimiters
LITTLE_ENDIAN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # without and with value representations
COMPRESSED_PIXELS = "1.2.840.10008.1.2.4"  # and further numbers; the elements are as in the second of them


def is_dicom(path):
    """Return True for a file with the letters of DICOM in their place."""
    with open(path, "rb") as file:
        return file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC


def require_possible_lengths(path):
    """Raise `UserError` for a DICOM file in which an element claims more bytes than are left in the file.

    Files that are deflated or big-endian, and files without the letters of DICOM, are not examined.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] != MAGIC:
            return
        in_pixels = False
        while file.tell() + 8 <= size:
            tag, length, is_nested = _element(file)
            if length != UNDEFINED and length > size - file.tell():
                raise found_expected(
                    path,
                    f"an element that claims {length} bytes, where {size - file.tell()} are left",
                    "a whole DICOM file",
                    "Copy or download it again.",
                )
            if tag == TRANSFER_SYNTAX and not _is_examined(file.read(length)):
                return
            if tag == PIXELS and length != UNDEFINED:
                return
            # compressed pixels follow in items of their own
            in_pixels = in_pixels or tag == PIXELS
            # the elements inside of a sequence are examined like the others
            is_skipped = in_pixels or not is_nested
            if is_skipped and tag != TRANSFER_SYNTAX and length != UNDEFINED:
                file.seek(length, os.SEEK_CUR)


def _element(file):
    """Read the start of an element; return ((group, number), length of its value, whether the value has elements)."""
    group, number, representation, short = struct.unpack("<HH2sH", file.read(8))
    if group == ITEMS or not representation.isalpha():  # no value representation: a length of 32 bits in its place
        length = struct.unpack("<I", representation + short.to_bytes(2, "little"))[0]
        return (group, number), length, group == ITEMS
    if representation in LONG:
        rest = file.read(4)
        length = struct.unpack("<I", rest)[0] if len(rest) == 4 else UNDEFINED
        return (group, number), length, representation == b"SQ"
    return (group, number), short, False


def _is_examined(syntax):
    name = syntax.rstrip(b"\0 ").decode("ascii", "replace")
    return name in LITTLE_ENDIAN or name.startswith(COMPRESSED_PIXELS)

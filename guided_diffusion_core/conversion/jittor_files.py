"""Reading and writing of Jittor's `.pkl` files, which are pickles of arrays, without Jittor."""

import hashlib
import io
import pickle

from guided_diffusion_core.conversion.pickle_machine import parse
from guided_diffusion_core.conversion.pickles import guarded
from guided_diffusion_core.conversion.stand_ins import NAMES
from guided_diffusion_core.conversion.state_dicts import arrays_of
from guided_diffusion_core.errors import found_expected

# `jt.save` ends its files with the SHA-1 of the pickle, followed by this mark.
_JITTOR_MARK = b"HCAJSLHD"
_SHA1_BYTES = 20


def read_pkl(content, where, key=""):
    """Return the `StateDict` of a `.pkl` that `jt.save` or `pickle.dump` has written.

    content: the bytes of the file. where: its path, for errors. key: as `arrays_of` takes it.
    Raises `UserError` for a broken file, and for content without arrays or Jittor variables.
    """
    if content.endswith(_JITTOR_MARK):
        end = len(content) - len(_JITTOR_MARK)
        checksum = content[end - _SHA1_BYTES : end]
        content = content[: end - _SHA1_BYTES]
        if hashlib.sha1(content).digest() != checksum:
            raise found_expected(
                where, "a checksum that does not match the content", "a complete file of jt.save", "Copy it again."
            )
    stream = io.BytesIO(content)

    def read():
        tree = parse(stream, NAMES)
        if stream.read(1):
            raise ValueError("bytes after the end of the pickle")  # such as the rest of a checksum
        return arrays_of(tree, where, len(content), key)

    return guarded(read, where)


def write_pkl(arrays):
    """Return the bytes of a `.pkl` that `jt.load` reads: numpy arrays by name, with Jittor's checksum."""
    content = pickle.dumps(dict(arrays), 4)
    return content + hashlib.sha1(content).digest() + _JITTOR_MARK

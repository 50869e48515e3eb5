"""Safe reading of pickles, and Jittor's `.pkl` files, which are pickles.

A pickle names functions, and they are called while it is read. Here each name is looked up in a table of
stand-ins that this software defines; any other name stops the reading. No function of numpy or a framework
is called. So a file can only decide about values.
"""

import hashlib
import io
import math
import pickle
import pickletools

import numpy as np

from guided_diffusion_core.errors import UserError, found_expected, join_names

ARRAY_TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")

# `jt.save` ends its files with the SHA-1 of the pickle, followed by this mark.
_JITTOR_MARK = b"HCAJSLHD"
_SHA1_BYTES = 20

# A pickle numbers the objects that it uses again, about fifteen per tensor. The reader allocates memory up to the
# largest number, so that a hostile file could ask for any amount.
_LARGEST_MEMO = 1_000_000


class Forbidden(Exception):
    """Raised if a pickle asks for something that no checkpoint needs."""


class Sealed:
    """Base class of all objects that a pickle can make: it accepts no state and no attributes from the pickle."""

    __slots__ = ()

    def __setstate__(self, state):
        raise Forbidden(f"state for {type(self).__name__}")


class Callable(Sealed):
    """A stand-in that a pickle may call; it passes the call to `function`."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)


class Names(dict):
    """Stand-in for OrderedDict. It ignores the state that torch adds, which is the versions of modules."""

    def __setstate__(self, state):
        pass


class _Dtype(Sealed):
    """Stand-in for a numpy dtype; its pickled state is (version, byte order, ...)."""

    __slots__ = ("name", "order")

    def __init__(self, name, align=False, copy=False):
        if name not in ARRAY_TYPES:
            raise Forbidden(f"arrays of type {name!r}")
        self.name = name
        self.order = "<"

    def __setstate__(self, state):
        self.order = {"<": "<", ">": ">", "|": "<"}[state[1]]


class _Array(Sealed):
    """Stand-in for a numpy array; its pickled state is (version, shape, dtype, is_fortran_order, bytes)."""

    __slots__ = ("_value",)

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise Forbidden("an array of objects")
        flat = np.frombuffer(content, dtype.order + dtype.name)
        if math.prod(shape) != flat.size:
            raise ValueError(f"{flat.size} values for the shape {tuple(shape)}")
        value = flat.reshape(shape, order="F" if fortran else "C")
        self._value = value.astype(value.dtype.newbyteorder("="), order="C")

    def array(self):
        return self._value


def _encode_latin1(text, encoding):
    """Return bytes that a protocol below 3 has written as a text with one character per byte."""
    if encoding != "latin1":
        raise Forbidden(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _var(value):
    """Return the array of a Jittor variable, which is pickled as that array."""
    if not isinstance(value, _Array):
        raise Forbidden("a variable that holds no array")
    return value


# (module, name) -> its stand-in in a .pkl. Versions of Jittor pickle `Var` under three names.
JITTOR_NAMES = {
    ("collections", "OrderedDict"): Callable(Names),
    ("_codecs", "encode"): Callable(_encode_latin1),
    ("numpy", "ndarray"): Sealed(),
    ("numpy", "dtype"): Callable(_Dtype),
    ("numpy.core.multiarray", "_reconstruct"): Callable(lambda cls, shape, kind: _Array()),
    ("numpy._core.multiarray", "_reconstruct"): Callable(lambda cls, shape, kind: _Array()),
    ("jittor", "jittor_core.Var"): Callable(_var),
    ("jittor", "Var"): Callable(_var),
    ("jittor_core", "Var"): Callable(_var),
}


class RestrictedUnpickler(pickle.Unpickler):
    """Reads one pickle that may use only the names of a table.

    stream:  seekable binary file. names: dict (module, name) -> `Sealed`.
    storage: function that returns the object of a persistent id; None if the format has no such ids.
    """

    def __init__(self, stream, names, storage=None):
        super().__init__(stream, encoding="utf-8")
        self._stream = stream
        self._names = names
        self._storage = storage

    def load(self):
        # A first pass over the opcodes, without executing them, checks the memo's numbers.
        start = self._stream.tell()
        for opcode, argument, _ in pickletools.genops(self._stream):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > _LARGEST_MEMO:
                raise Forbidden("memory for billions of objects")
        self._stream.seek(start)
        return super().load()

    def find_class(self, module, name):
        try:
            return self._names[module, name]
        except KeyError:
            raise Forbidden(f"{module}.{name}") from None

    def persistent_load(self, pid):
        if self._storage is None:
            raise Forbidden("a persistent id")
        return self._storage(pid)


def guarded(read, where):
    """Return `read()`. Any error that a broken or hostile file makes it raise becomes a `UserError`."""
    try:
        return read()
    except UserError:
        raise
    except Forbidden as error:
        raise found_expected(
            where,
            f"a pickle that asks for more than weights: {error}",
            "only the weights of a network; nothing in the file was executed",
            "Do not use this file with other software.",
        ) from error
    except Exception as error:  # a malformed pickle can raise nearly every kind of error
        raise found_expected(
            where,
            f"no readable checkpoint ({type(error).__name__}: {error})",
            "a complete file in the format that its name says",
            "Copy it again.",
        ) from error


def arrays_of(tree, where):
    """Return name -> numpy array of an unpickled state dict. Raises `UserError` if it is something else."""
    if isinstance(tree, dict) and {"param_groups", "defaults"} & tree.keys():
        raise found_expected(
            where, "the state of an optimizer", "the weights of a network", "Use savedmodel* or emasavedmodel_*."
        )
    if not isinstance(tree, dict) or not tree:
        raise found_expected(where, f"{type(tree).__name__} without weights", "a state dict", "Use another file.")
    wrong = [str(name) for name, value in tree.items() if not isinstance(name, str) or not hasattr(value, "array")]
    if wrong:
        raise found_expected(
            where,
            f"entries that are not arrays: {join_names(wrong)}",
            "only a state dict",
            "Save the network's state_dict() itself.",
        )
    return {name: value.array() for name, value in tree.items()}


def read_pkl(content, where):
    """Return name -> numpy array of a `.pkl` that `jt.save` or `pickle.dump` has written.

    content: the bytes of the file. where: its path, for errors.
    Raises `UserError` for a broken file, and for content other than arrays and Jittor variables.
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
        tree = RestrictedUnpickler(stream, JITTOR_NAMES).load()
        if stream.read(1):
            raise ValueError("bytes after the end of the pickle")  # such as the rest of a checksum
        return arrays_of(tree, where)

    return guarded(read, where)


def write_pkl(arrays):
    """Return the bytes of a `.pkl` that `jt.load` reads: numpy arrays by name, with Jittor's checksum."""
    content = pickle.dumps(dict(arrays), 4)
    return content + hashlib.sha1(content).digest() + _JITTOR_MARK

"""Stand-ins for the arrays of numpy and Jittor and the tensors of torch in a pickle: `NAMES`.

They check what a pickle says of a tensor, and hold the numbers as they lie in the file. Only `array()` copies them.
"""

import itertools
import math

import numpy as np

from guided_diffusion_core.conversion.pickles import Callable, Forbidden, Names, Sealed, fill

ARRAY_TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
BFLOAT16 = "bfloat16"
_MOST_AXES = 32  # of an array of numpy
_LARGEST_LENGTH = 2**62
_STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}
STORAGE_OF = {kind: name for name, kind in _STORAGES.items()}


def widened(values):
    """Return the float32 values of bfloat16 numbers, which are the upper halves of float32 numbers; exact.

    values: uint16 array of the bits.
    """
    return np.asarray(np.left_shift(values, 16, dtype=np.uint32)).view(np.float32)


class Weights(Sealed):
    """An array or a tensor of a pickle.

    shape: tuple. kind: name of its type, such as "f4" or `BFLOAT16`. nbytes: size of its numbers in the file.
    """

    __slots__ = ()

    @property
    def nbytes(self):
        """Return the size of the numbers in bytes, as the file has them."""
        return math.prod(self.shape) * (2 if self.kind == BFLOAT16 else int(self.kind[1:]))

    def array(self):
        """Return the numbers in C order and in the machine's byte order."""
        raise NotImplementedError


def _checked_lengths(numbers):
    """Return lengths, strides or offsets of a pickle as a tuple of whole numbers that are not negative."""
    numbers = tuple(numbers)
    if len(numbers) > _MOST_AXES or not all(
        type(number) is int and 0 <= number < _LARGEST_LENGTH for number in numbers
    ):
        raise ValueError("a size, stride or offset that is not a count")
    return numbers


class _Dtype(Sealed):
    """Stand-in for a numpy dtype; its pickled state is (version, byte order, ...)."""

    __slots__ = ("name", "order")

    def __init__(self, name, align=False, copy=False):
        if type(name) is not str:
            raise Forbidden("a type of arrays without a name")
        self.name = name
        self.order = "<"

    def build(self, state):
        """Take the byte order."""
        self.order = ">" if state[1] == ">" else "<"


class _Latin1(Sealed):
    """Bytes that a protocol below 3 has written as a text with one character per byte."""

    __slots__ = ("text",)

    def __init__(self, text, encoding):
        if type(text) is not str or encoding != "latin1":
            raise Forbidden("another encoding than latin1")
        self.text = text


class _Array(Weights):
    """Stand-in for a numpy array; its pickled state is (version, shape, dtype, is_fortran_order, bytes)."""

    __slots__ = ("shape", "kind", "_order", "_fortran", "_content")

    def build(self, state):
        """Take shape, type and numbers."""
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype):
            raise Forbidden("an array without a type")
        self.shape = _checked_lengths(shape)
        self.kind = dtype.name
        self._order = dtype.order
        self._fortran = fortran is True or fortran == 1
        self._content = content

    def array(self):
        """Return the numbers."""
        content = self._content
        if isinstance(content, _Latin1):
            content = content.text
        if isinstance(content, str):
            content = content.encode("latin1")
        if not isinstance(content, bytes | bytearray):
            raise Forbidden("an array of objects")
        flat = np.frombuffer(content, self._order + self.kind)
        if math.prod(self.shape) != flat.size:
            raise ValueError(f"{flat.size} values for the shape {self.shape}")
        value = flat.reshape(self.shape, order="F" if self._fortran else "C")
        return value.astype(value.dtype.newbyteorder("="), order="C")


def _array_of_buffer(content, dtype, shape, order):
    """Return the array that numpy writes with protocol 5."""
    array = _Array()
    array.build((1, shape, dtype, order == "F", content))
    return array


def _scalar(dtype, content):
    """Return a number of numpy as an array without axes."""
    return _array_of_buffer(content, dtype, (), "C")


def _weights(value, *rest):
    """Return what wraps an array: a variable of Jittor or a parameter of torch."""
    if not isinstance(value, Weights):
        raise Forbidden("a parameter or a variable that holds no numbers")
    return value


class _StorageType(Sealed):
    """Stand-in for a class such as torch.FloatStorage."""

    __slots__ = ("kind", "dtype")

    def __init__(self, kind):
        self.kind = kind
        self.dtype = np.dtype("u2" if kind == BFLOAT16 else kind)


class Storage(Sealed):
    """The numbers of one or more tensors of torch.

    type: `_StorageType`. numel: their count. read: function that returns their bytes, and the byte order "<" or ">".
    """

    __slots__ = ("type", "numel", "read")

    def __init__(self, kind, numel, read=None):
        self.type = kind
        self.numel = numel
        self.read = read

    def values(self):
        """Return the numbers, bfloat16 as the uint16 of its bits."""
        content, order = self.read()
        return np.frombuffer(content, self.type.dtype.newbyteorder(order), self.numel)


class _Tensor(Weights):
    """A view of a storage. As in torch, offset, size and stride count numbers, not bytes."""

    __slots__ = ("shape", "kind", "_storage", "_offset", "_stride")

    def __init__(self, storage, offset, size, stride, *rest):
        if not isinstance(storage, Storage):
            raise Forbidden("a tensor without a storage")
        self.shape = _checked_lengths(size)
        self._stride = _checked_lengths(stride)
        (self._offset,) = _checked_lengths((offset,))
        if len(self.shape) != len(self._stride):
            raise ValueError(f"{len(self._stride)} strides of {len(self.shape)} axes")
        # position of the last number; it must lie within the storage
        last = self._offset + sum((length - 1) * step for length, step in zip(self.shape, self._stride))
        count = math.prod(self.shape)
        if count and (last >= storage.numel or count > storage.numel):
            raise ValueError(f"a tensor of size {self.shape} in a storage of {storage.numel} numbers")
        self.kind = storage.type.kind
        self._storage = storage

    def array(self):
        """Return the numbers. bfloat16 is widened to float32."""
        values = self._storage.values()
        if not math.prod(self.shape):
            values = np.empty(self.shape, values.dtype)
        else:
            start = values[self._offset :]
            strides = tuple(step * start.itemsize for step in self._stride)
            values = np.lib.stride_tricks.as_strided(start, self.shape, strides, writeable=False)
        values = values.astype(values.dtype.newbyteorder("="), order="C")
        return widened(values) if self.kind == BFLOAT16 else values


def _rebuilt(function, kind, arguments, state=None):
    """Return a tensor that has attributes of its own, without them."""
    if not isinstance(function, Callable):
        raise Forbidden("a tensor of an unknown kind")
    return function.function(*arguments)


def _ordered_dict(pairs=()):
    """Return a dict of pairs, which protocols below 2 give to OrderedDict."""
    return fill(Names(), list(itertools.chain.from_iterable(pairs)))


# (module, name) -> its stand-in. Versions of Jittor pickle `Var` under three names.
NAMES = {
    ("collections", "OrderedDict"): Callable(_ordered_dict),
    ("collections", "defaultdict"): Callable(lambda factory=None: Names()),
    ("_codecs", "encode"): Callable(_Latin1),
    ("numpy", "ndarray"): Sealed(),
    ("numpy", "dtype"): Callable(_Dtype),
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): Callable(lambda kind, shape, code: _Array())
        for core in ("core", "_core")
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): Callable(_array_of_buffer) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Callable(_scalar) for core in ("core", "_core")},
    ("jittor", "jittor_core.Var"): Callable(_weights),
    ("jittor", "Var"): Callable(_weights),
    ("jittor_core", "Var"): Callable(_weights),
    ("torch._utils", "_rebuild_tensor"): Callable(_Tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Callable(_Tensor),
    ("torch._utils", "_rebuild_parameter"): Callable(_weights),
    ("torch._utils", "_rebuild_parameter_with_state"): Callable(_weights),
    ("torch._tensor", "_rebuild_from_type_v2"): Callable(_rebuilt),
    **{("torch", name): _StorageType(kind) for name, kind in _STORAGES.items()},
}


def storage_of(pid, sizes):
    """Return (type, key, numel) of a storage's persistent id: ("storage", type, key, device, numel, ...).

    sizes: lengths of the id that the format has.
    """
    not_a_storage = Forbidden("a persistent id that is not a storage")
    if type(pid) is not tuple or len(pid) not in sizes or pid[0] != "storage":
        raise not_a_storage
    kind = pid[1]
    key = pid[2]
    numel = pid[4]
    if not isinstance(kind, _StorageType) or type(key) is not str:
        raise not_a_storage
    if type(numel) is not int or not 0 <= numel < _LARGEST_LENGTH:
        raise not_a_storage
    return kind, key, numel

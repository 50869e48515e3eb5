"""Reading and writing of PyTorch's `.pt` files without PyTorch.

Since version 1.6 a file is a zip archive. It contains a pickle, in which each tensor is (storage, offset,
size, stride), and one uncompressed entry of raw numbers per storage. Older files contain the same as a
sequence of pickles. `torch/serialization.py` defines the format.
"""

import io
import math
import pickle
import zipfile

import numpy as np

from guided_diffusion_core.conversion.pickles import (
    Callable,
    Forbidden,
    Names,
    RestrictedUnpickler,
    Sealed,
    arrays_of,
    guarded,
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_BFLOAT16 = "bfloat16"
_STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}
_STORAGE_OF = {kind: name for name, kind in _STORAGES.items()}


class _StorageType(Sealed):
    """Stand-in for a class such as torch.FloatStorage."""

    __slots__ = ("dtype", "is_bfloat16")

    def __init__(self, kind):
        self.is_bfloat16 = kind == _BFLOAT16
        self.dtype = np.dtype("u2" if self.is_bfloat16 else kind)


class _Storage(Sealed):
    """The numbers of one or more tensors. In a legacy file they follow after the tensors."""

    __slots__ = ("kind", "numel", "values")

    def __init__(self, kind, numel, values=None):
        self.kind = kind
        self.numel = numel
        self.values = values

    def fill(self, content, order):
        """Set the numbers from bytes; order: "<" (little-endian) or ">" (big-endian)."""
        self.values = np.frombuffer(content, self.kind.dtype.newbyteorder(order), self.numel)


class _Tensor(Sealed):
    """A view of a storage. As in torch, offset, size and stride count numbers, not bytes."""

    __slots__ = ("_storage", "_offset", "_size", "_stride")

    def __init__(self, storage, offset, size, stride, *rest):
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or len(size) != len(stride):
            raise Forbidden("a tensor without a storage")
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a size, stride or offset that is not a count")
        # position of the last number; it must lie within the storage
        last = offset + sum((length - 1) * step for length, step in zip(size, stride))
        if math.prod(size) and (last >= storage.numel or math.prod(size) > storage.numel):
            raise ValueError(f"a tensor of size {tuple(size)} in a storage of {storage.numel} numbers")
        self._storage = storage
        self._offset = offset
        self._size = tuple(size)
        self._stride = tuple(stride)

    def array(self):
        """Return a copy in C order. bfloat16 is widened to float32, which is exact."""
        if not math.prod(self._size):
            values = np.empty(self._size, self._storage.values.dtype)
        else:
            start = self._storage.values[self._offset :]
            strides = tuple(step * start.itemsize for step in self._stride)
            values = np.lib.stride_tricks.as_strided(start, self._size, strides, writeable=False)
        values = values.astype(values.dtype.newbyteorder("="), order="C")
        if self._storage.kind.is_bfloat16:
            # a bfloat16 is the upper half of a float32
            return np.asarray(np.left_shift(values, 16, dtype=np.uint32)).view(np.float32)
        return values


def _parameter(tensor, *rest):
    if not isinstance(tensor, _Tensor):
        raise Forbidden("a parameter that is not a tensor")
    return tensor


_NAMES = {
    ("collections", "OrderedDict"): Callable(Names),
    ("torch._utils", "_rebuild_tensor_v2"): Callable(_Tensor),
    ("torch._utils", "_rebuild_parameter"): Callable(_parameter),
    **{("torch", name): _StorageType(kind) for name, kind in _STORAGES.items()},
}


def read_pt(content, where):
    """Return name -> numpy array of a `.pt` or `.pth` with a state dict, in the new or the old format.

    content: the bytes of the file. where: its path, for errors.
    Raises `UserError` for a broken file and for one that contains or asks for anything else.
    """
    read = _read_zip if content.startswith(b"PK") else _read_legacy
    return guarded(lambda: arrays_of(read(content), where), where)


def _checked_id(pid, sizes):
    """Return (type, key, numel) of a storage's persistent id: ("storage", type, key, device, numel, ...)."""
    not_a_storage = Forbidden("a persistent id that is not a storage")
    if not isinstance(pid, tuple) or len(pid) not in sizes or pid[0] != "storage":
        raise not_a_storage
    kind = pid[1]
    key = pid[2]
    numel = pid[4]
    if not isinstance(kind, _StorageType) or type(key) not in (str, int):
        raise not_a_storage
    if type(numel) is not int or numel < 0:
        raise not_a_storage
    return kind, key, numel


def _read_zip(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("a compressed entry, which torch.save does not write")
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"{len(roots)} entries data.pkl")
        root = roots[0]
        order = "<"
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") == b"big":
            order = ">"
        storages = {}  # key -> `_Storage`

        def storage(pid):
            kind, key, numel = _checked_id(pid, (5,))
            if key not in storages:
                storages[key] = _Storage(kind, numel)
                storages[key].fill(archive.read(f"{root}data/{key}"), order)
            return storages[key]

        return RestrictedUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")), _NAMES, storage).load()


def _read_legacy(content):
    """Read the format before torch 1.6.

    It is a sequence of pickles: the magic number, the protocol, the machine, the state dict and the keys of
    the storages. The length (int64) and the numbers of each storage follow.
    """
    stream = io.BytesIO(content)
    storages = {}  # key -> `_Storage`

    def storage(pid):
        kind, key, numel = _checked_id(pid, (5, 6))
        if pid[5:] not in ((), (None,)):
            raise ValueError("a storage that is part of another, as before torch 0.4")
        return storages.setdefault(key, _Storage(kind, numel))

    def load():
        return RestrictedUnpickler(stream, _NAMES, storage).load()

    if load() != _LEGACY_MAGIC or load() != _LEGACY_PROTOCOL:
        raise ValueError("not a file of torch.save")
    machine = load()
    byte_order = "little" if machine.get("little_endian", True) else "big"
    tree = load()
    for key in load():
        storage_of_key = storages[key]
        numel = int.from_bytes(stream.read(8), byte_order)
        if numel != storage_of_key.numel:
            raise ValueError(f"a storage of {numel} numbers instead of {storage_of_key.numel}")
        numbers = stream.read(numel * storage_of_key.kind.dtype.itemsize)
        storage_of_key.fill(numbers, "<" if byte_order == "little" else ">")
    return tree


def write_pt(arrays):
    """Return the bytes of a `.pt` with an OrderedDict of tensors. torch.load reads it, also with weights_only.

    arrays: name -> numpy array of a type that torch has. The same arrays give the same bytes.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:

        def add(name, content):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)

        add("data.pkl", _state_pickle(arrays))
        add("byteorder", "little")
        for key, value in enumerate(arrays.values()):
            add(f"data/{key}", value.astype(value.dtype.newbyteorder("<")).tobytes())
        add("version", "3\n")
    return buffer.getvalue()


def _state_pickle(arrays):
    """Return the pickle of the state dict. It is written opcode by opcode, since a pickler would need torch."""
    ordered_dict = _named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    content = pickle.PROTO + b"\x02" + ordered_dict + pickle.MARK
    for key, (name, value) in enumerate(arrays.items()):
        kind = _named("torch", _STORAGE_OF[value.dtype.str[1:]])
        storage = _tuple(_plain("storage"), kind, _plain(str(key)), _plain("cpu"), _plain(value.size))
        stride = tuple(math.prod(value.shape[axis + 1 :]) for axis in range(value.ndim))  # of C order
        # arguments of _rebuild_tensor_v2: storage, offset, size, stride, requires_grad, backward_hooks
        arguments = _tuple(
            storage + pickle.BINPERSID,
            _plain(0),
            _plain(value.shape),
            _plain(stride),
            pickle.NEWFALSE,
            ordered_dict,
        )
        content += _plain(name) + _named("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE
    return content + pickle.SETITEMS + pickle.STOP


def _named(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(*parts):
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def _plain(value):
    """Return the opcodes of a text, a number or a tuple of numbers: its pickle without the first and last ones."""
    return pickle.dumps(value, 2)[2:-1]

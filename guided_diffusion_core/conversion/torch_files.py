"""PyTorch's `.pt` files without PyTorch.

A file is a zip archive (since 1.6) of a pickle, in which each tensor is (storage, offset, size,
stride), and one uncompressed entry of raw numbers per storage. Older files hold the same in one
stream of pickles. The format is that of `torch/serialization.py`.
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
    """The numbers of a tensor or several; a legacy file brings them after its tensors."""

    __slots__ = ("kind", "numel", "values")

    def __init__(self, kind, numel, values=None):
        self.kind = kind
        self.numel = numel
        self.values = values

    def fill(self, content, order):
        """Set the numbers from bytes of a byte order ("<", ">")."""
        self.values = np.frombuffer(content, self.kind.dtype.newbyteorder(order), self.numel)


class _Tensor(Sealed):
    """A window on a storage: offset, size and stride count numbers, as in torch."""

    __slots__ = ("_storage", "_offset", "_size", "_stride")

    def __init__(self, storage, offset, size, stride, *rest):
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or len(size) != len(stride):
            raise Forbidden("a tensor that is none")
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a size, stride or offset that is no count")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride))
        if math.prod(size) and (last >= storage.numel or math.prod(size) > storage.numel):
            raise ValueError(f"a tensor of size {tuple(size)} in a storage of {storage.numel} numbers")
        self._storage = storage
        self._offset = offset
        self._size = tuple(size)
        self._stride = tuple(stride)

    def array(self):
        """A copy in C order. bfloat16 is widened to float32, which is exact."""
        if not math.prod(self._size):
            values = np.empty(self._size, self._storage.values.dtype)
        else:
            start = self._storage.values[self._offset :]
            strides = tuple(step * start.itemsize for step in self._stride)
            values = np.lib.stride_tricks.as_strided(start, self._size, strides, writeable=False)
        values = values.astype(values.dtype.newbyteorder("="), order="C")
        if self._storage.kind.is_bfloat16:
            # the upper half of a float32
            return np.asarray(np.left_shift(values, 16, dtype=np.uint32)).view(np.float32)
        return values


def _parameter(tensor, *rest):
    if not isinstance(tensor, _Tensor):
        raise Forbidden("a parameter that is no tensor")
    return tensor


_NAMES = {
    ("collections", "OrderedDict"): Callable(Names),
    ("torch._utils", "_rebuild_tensor_v2"): Callable(_Tensor),
    ("torch._utils", "_rebuild_parameter"): Callable(_parameter),
    **{("torch", name): _StorageType(kind) for name, kind in _STORAGES.items()},
}


def read_pt(content, where):
    """Name -> numpy array of a `.pt` or `.pth` that holds a state dict, of either format.

    content: the file's bytes. where: its path, for errors.
    Raises `UserError` for a broken file and for one that holds or asks for anything else.
    """
    read = _read_zip if content.startswith(b"PK") else _read_legacy
    return guarded(lambda: arrays_of(read(content), where), where)


def _checked_id(pid, sizes):
    """(type, key, numel) of a storage's persistent id: "storage", type, key, device, numel, ..."""
    if not isinstance(pid, tuple) or len(pid) not in sizes or pid[0] != "storage":
        raise Forbidden("a persistent id that is no storage")
    kind = pid[1]
    key = pid[2]
    numel = pid[4]
    if not isinstance(kind, _StorageType) or type(key) not in (str, int):
        raise Forbidden("a persistent id that is no storage")
    if type(numel) is not int or numel < 0:
        raise Forbidden("a persistent id that is no storage")
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
        order = ">" if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") == b"big" else "<"
        storages = {}

        def storage(pid):
            kind, key, numel = _checked_id(pid, (5,))
            if key not in storages:
                storages[key] = _Storage(kind, numel)
                storages[key].fill(archive.read(f"{root}data/{key}"), order)
            return storages[key]

        return RestrictedUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")), _NAMES, storage).load()


def _read_legacy(content):
    """Pickles of the magic number, the protocol, the machine, the state dict and the storages' keys,
    then of each storage its length (int64) and its numbers."""
    stream = io.BytesIO(content)
    storages = {}

    def storage(pid):
        kind, key, numel = _checked_id(pid, (5, 6))
        if pid[5:] not in ((), (None,)):
            raise ValueError("a storage inside another, as before torch 0.4")
        return storages.setdefault(key, _Storage(kind, numel))

    def load():
        return RestrictedUnpickler(stream, _NAMES, storage).load()

    if load() != _LEGACY_MAGIC or load() != _LEGACY_PROTOCOL:
        raise ValueError("no file of torch.save")
    order = "<" if load().get("little_endian", True) else ">"
    tree = load()
    for key in load():
        found = int.from_bytes(stream.read(8), "little" if order == "<" else "big")
        if found != storages[key].numel:
            raise ValueError(f"a storage of {found} numbers instead of {storages[key].numel}")
        storages[key].fill(stream.read(found * storages[key].kind.dtype.itemsize), order)
    return tree


def write_pt(arrays):
    """The bytes of a `.pt` that torch.load reads, with weights_only too: an OrderedDict of tensors.

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
    """The pickle of the state dict, opcode by opcode: a pickler would have to import torch."""
    ordered_dict = _named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    content = pickle.PROTO + b"\x02" + ordered_dict + pickle.MARK
    for key, (name, value) in enumerate(arrays.items()):
        kind = _named("torch", _STORAGE_OF[value.dtype.str[1:]])
        storage = _tuple(_plain("storage"), kind, _plain(str(key)), _plain("cpu"), _plain(value.size))
        stride = tuple(math.prod(value.shape[axis + 1 :]) for axis in range(value.ndim))
        content += (
            _plain(name)
            + _named("torch._utils", "_rebuild_tensor_v2")
            + _tuple(
                storage + pickle.BINPERSID,
                _plain(0),
                _plain(value.shape),
                _plain(stride),
                pickle.NEWFALSE,
                ordered_dict,
            )
            + pickle.REDUCE
        )
    return content + pickle.SETITEMS + pickle.STOP


def _named(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(*parts):
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def _plain(value):
    """The opcodes of a text, a number or a tuple of numbers: its own pickle without begin and end."""
    return pickle.dumps(value, 2)[2:-1]

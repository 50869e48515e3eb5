"""Reading and writing of PyTorch's `.pt` files without PyTorch.

Since version 1.6 a file is a zip archive. It contains a pickle, in which each tensor is (storage, offset,
size, stride), and one uncompressed entry of raw numbers per storage. Older files contain the same as a
sequence of pickles. `torch/serialization.py` defines the format.
"""

import functools
import io
import math
import pickle
import zipfile

from guided_diffusion_core.conversion.pickle_machine import parse
from guided_diffusion_core.conversion.pickles import Foreign, guarded
from guided_diffusion_core.conversion.stand_ins import NAMES, STORAGE_OF, Storage, storage_of
from guided_diffusion_core.conversion.state_dicts import arrays_of

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = pickle.dumps(_LEGACY_MAGIC, 2)  # with which a file before torch 1.6 begins
_LEGACY_PROTOCOL = 1001


def read_pt(content, where, key=""):
    """Return the `StateDict` of a `.pt` or `.pth`, in the new or the old format.

    content: the bytes of the file. where: its path, for errors. key: as `arrays_of` takes it.
    Raises `UserError` for a broken file and for one without a state dict.
    """
    read = _read_zip if content.startswith(b"PK") else _read_legacy
    return guarded(lambda: arrays_of(read(content), where, len(content), key), where)


def _read_zip(content):
    """Return the tree of a file whose numbers stay in the archive until they are asked for."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(name.endswith("/constants.pkl") for name in entries):
        return Foreign("a program of TorchScript", is_object=True)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ValueError("a compressed entry, which torch.save does not write")
    if sum(entry.file_size for entry in entries.values()) > len(content):
        raise ValueError("entries that are larger than the file")
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"{len(roots)} entries data.pkl")
    root = roots[0]
    is_big = f"{root}byteorder" in entries and archive.read(f"{root}byteorder") == b"big"
    storages = {}  # key -> `Storage`

    def storage(pid):
        kind, key, numel = storage_of(pid, (5,))
        # each storage is read once, however many tensors view it
        read = functools.cache(lambda: (archive.read(f"{root}data/{key}"), ">" if is_big else "<"))
        return storages.setdefault(key, Storage(kind, numel, read))

    return parse(io.BytesIO(archive.read(f"{root}data.pkl")), NAMES, storage)


def _read_legacy(content):
    """Read the format before torch 1.6.

    It is a sequence of pickles: the magic number, the protocol, the machine, the state dict and the keys of
    the storages. The length (int64) and the numbers of each storage follow.
    """
    stream = io.BytesIO(content)
    storages = {}  # key -> `Storage`

    def storage(pid):
        if type(pid) is tuple and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # the class of a whole network, beside its source
        kind, key, numel = storage_of(pid, (5, 6))
        if pid[5:] not in ((), (None,)):
            raise ValueError("a storage that is part of another, as before torch 0.4")
        return storages.setdefault(key, Storage(kind, numel))

    def load():
        return parse(stream, NAMES, storage)

    if load() != _LEGACY_MAGIC or load() != _LEGACY_PROTOCOL:
        raise ValueError("not a file of torch.save")
    machine = load()
    byte_order = "little" if machine.get("little_endian", True) else "big"
    order = "<" if byte_order == "little" else ">"
    tree = load()
    for key in load():
        if type(key) is not str:
            raise ValueError("a storage without a name")
        found = storages[key]
        numel = int.from_bytes(stream.read(8), byte_order)
        if numel != found.numel:
            raise ValueError(f"a storage of {numel} numbers instead of {found.numel}")
        numbers = stream.read(numel * found.type.dtype.itemsize)
        found.read = lambda numbers=numbers: (numbers, order)
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
        kind = _named("torch", STORAGE_OF[value.dtype.str[1:]])
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

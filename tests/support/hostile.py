"""Files that would make a careless reader hang or take all memory; each is small."""

import io
import json
import pickle
import zipfile

import numpy as np
from support.conversions import unzipped, zipped

from guided_diffusion_core.conversion.torch_files import write_pt

MEGABYTE = 2**20


def _plain(value):
    """Return the opcodes that put a value on the stack, without those of a whole pickle."""
    return pickle.dumps(value, 2)[2:-1]


def _nested(levels):
    """Return the opcodes of a tuple in which every level holds the one below twice: its hash takes 2**levels steps."""
    return pickle.EMPTY_TUPLE + (b"2" + pickle.TUPLE2) * levels  # b"2" is DUP


def _named(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _torch(tree):
    """Return a .pt of a pickle's opcodes."""
    return zipped({"archive/data.pkl": pickle.PROTO + b"\x02" + tree + pickle.STOP, "archive/data/0": bytes(8)})


def _pickled(tree):
    return pickle.PROTO + b"\x02" + tree + pickle.STOP


def _many_tensors(numbers, tensors):
    """Return a .pt whose tensors all view one storage."""
    entries = unzipped(write_pt({"x": np.zeros(numbers, np.float32)}))
    content = entries["archive/data.pkl"]
    name = _plain("x")
    start = content.index(name)
    one = content[start + len(name) : content.index(pickle.SETITEMS + pickle.STOP, start)]
    every = b"".join(_plain(f"x{index}") + one for index in range(tensors))
    entries["archive/data.pkl"] = content[:start] + every + pickle.SETITEMS + pickle.STOP
    return zipped(entries)


def _overlapping_entries(copies):
    """Return a .pt whose table of contents names one entry of a megabyte many times."""
    arrays = {f"x{index}": np.zeros(MEGABYTE // 4, np.float32) for index in range(copies)}
    entries = unzipped(write_pt({name: value[:1] for name, value in arrays.items()}))
    whole = unzipped(write_pt({"x": np.zeros(MEGABYTE // 4, np.float32)}))["archive/data/0"]
    small = _plain(1)
    entries["archive/data.pkl"] = entries["archive/data.pkl"].replace(
        _plain("cpu") + small, _plain("cpu") + _plain(MEGABYTE // 4)
    )
    entries["archive/data/0"] = whole

    def point_to_first(archive):
        first = archive.getinfo("archive/data/0")
        for index in range(1, copies):
            entry = archive.getinfo(f"archive/data/{index}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(entry, field, getattr(first, field))

    return _with_table(zipped(entries), point_to_first)


def _with_table(content, change):
    """Return an archive whose table of contents is changed; change: function of the open archive."""
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        change(archive)
        archive.writestr("archive/end", b"")  # so that the table is written again
    return buffer.getvalue()


def _large_entry(size):
    """Return a .pt whose table of contents claims that the numbers of its tensor are so long."""

    def enlarge(archive):
        archive.getinfo("archive/data/0").file_size = size
        archive.getinfo("archive/data/0").compress_size = size

    return _with_table(write_pt({"x": np.zeros(4, np.float32)}), enlarge)


def _many_arrays(copies):
    """Return a .pkl whose arrays all hold the same bytes of the memo."""
    empty = _named("numpy.core.multiarray", "_reconstruct")
    numbers = _plain(bytes(1)).replace(_plain(bytes(1)), b"B" + MEGABYTE.to_bytes(4, "little") + bytes(MEGABYTE))
    content = numbers + b"q\x00" + pickle.POP
    content += _named("numpy", "dtype") + _plain(("u1", False, True)) + pickle.REDUCE + b"q\x01" + pickle.POP
    content += pickle.EMPTY_DICT + pickle.MARK
    for index in range(copies):
        state = pickle.MARK + _plain(1) + _plain((MEGABYTE,)) + b"h\x01" + pickle.NEWFALSE + b"h\x00" + pickle.TUPLE
        made = empty + pickle.EMPTY_TUPLE + _plain(0) + _plain(0) + b"\x87" + pickle.REDUCE
        content += _plain(f"x{index}") + made + state + pickle.BUILD
    return _pickled(content + pickle.SETITEMS)


def _long_names(copies):
    """Return a .pkl that joins two long texts of the memo to names, again and again."""
    text = b"X" + MEGABYTE.to_bytes(4, "little") + b"a" * MEGABYTE + b"q\x00"
    return _pickled(text + (b"h\x00h\x00\x93" * copies))


def _encoded_texts(copies):
    """Return a .pkl that encodes a long text of the memo again and again."""
    text = b"X" + MEGABYTE.to_bytes(4, "little") + b"a" * MEGABYTE + b"q\x00" + _plain("latin1") + b"q\x01"
    encode = _named("_codecs", "encode") + b"q\x02"
    return _pickled(text + encode + b"h\x02h\x00h\x01\x86R" * copies)


def safetensors(header, data=b"", length=None):
    """Return a .safetensors file; header: JSON values or bytes. length: what the file claims of the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def checkpoints():
    """Return name -> (ending, content) of hostile checkpoints."""
    tensor = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    key = _nested(60)
    return {
        "many tensors on one storage": (".pt", _many_tensors(MEGABYTE // 4, 20000)),
        "entries on the same bytes": (".pt", _overlapping_entries(4000)),
        "an entry larger than the file": (".pt", _large_entry(2**31)),
        "many arrays of the same bytes": (".pkl", _many_arrays(20000)),
        "names without end": (".pkl", _long_names(20000)),
        "texts encoded without end": (".pkl", _encoded_texts(20000)),
        "a nested tuple as a key": (".pkl", _pickled(b"}" + key + _plain(1) + b"s")),
        "a nested tuple as a key of a tensor": (".pt", _torch(b"}" + key + _plain(1) + b"s")),
        "a nested tuple as a key of many": (".pkl", _pickled(b"(" + key + _plain(1) + b"d")),
        "a nested tuple in an OrderedDict": (
            ".pkl",
            _pickled(_named("collections", "OrderedDict") + b"]](" + key + _plain(1) + b"ea\x85R"),
        ),
        "a nested tuple as a name": (".pkl", _pickled(key + b"2\x93")),
        "a nested tuple as a type": (".pkl", _pickled(_named("numpy", "dtype") + key + b"\x85R")),
        "a nested tuple as a storage": (".pt", _torch(key + b"Q")),
        "a nested tuple as weights": (".pkl", _pickled(b"}" + _plain("x") + key + b"s")),
        "a nested tuple alone": (".pkl", _pickled(key)),
        "a set of a nested tuple": (".pkl", _pickled(b"\x8f(" + key + b"\x90")),
        "a deep tuple": (".pkl", _pickled(b")" + b"\x85" * 900_000)),
        "a deep dict": (".pkl", _pickled(b"}" + _plain("x") + (b"}" + _plain("x")) * 100_000 + b"N" + b"s" * 100_001)),
        "a list that holds itself": (".pkl", _pickled(b"]q\x00h\x00a")),
        "a dict that holds itself": (".pkl", _pickled(b"}q\x00" + _plain("x") + b"h\x00s")),
        "keys of the same hash": (
            ".pkl",
            _pickled(b"}(" + b"".join(_plain(index * (2**61 - 1)) + b"N" for index in range(1, 150_000)) + b"u"),
        ),
        "millions of steps": (".pkl", _pickled(b"N0" * 2_500_000 + b"N")),
        "millions of dicts": (".pkl", _pickled(b"](" + b"}" * 4_000_000 + b"e")),
        "a long header": (".safetensors", safetensors({}, length=2**62)),
        "a header of gigabytes": (".safetensors", safetensors({}, length=90_000_000)),
        "tensors on the same bytes": (".safetensors", safetensors({"a": tensor, "b": tensor}, bytes(16))),
        "a tensor beyond the end": (
            ".safetensors",
            safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(16)),
        ),
        "a shape that overflows": (
            ".safetensors",
            safetensors({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        ),
        "an empty tensor of many rows": (
            ".safetensors",
            safetensors({"a": {"dtype": "F32", "shape": [2**62, 0, 2**62], "data_offsets": [0, 0]}}),
        ),
        "a deep header": (".safetensors", safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)),
    }

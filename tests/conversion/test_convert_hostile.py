"""Test hostile, broken and unusual checkpoints: nothing is executed, and there is one clear error."""

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import Counter
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import hostile
from support.backends import ROOT
from support.conversions import FORMATS, GIVEN, assert_bitwise, unzipped, zipped
from support.fuzzing import outcome

from guided_diffusion_core.conversion import convert
from guided_diffusion_core.conversion.jittor_files import read_pkl
from guided_diffusion_core.conversion.torch_files import read_pt, write_pt
from guided_diffusion_core.errors import UserError

# Instructions of a pickle with arguments, for programs of any kind.
INSTRUCTIONS = [
    *(bytes([code]) for code in b"()]}NRtl.02aesubdoQ1\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94"),
    *(bytes([code, place]) for code in b"hqKC" for place in range(3)),
    *(pickle.dumps(value, 2)[2:-1] for value in ("storage", "0", "x", 3, (2, 3), 1.5, 2**70, "cpu", "f4", "latin1")),
    *(
        b"c" + name.replace(" ", "\n").encode() + b"\n"
        for name in (
            "numpy dtype",
            "numpy ndarray",
            "numpy.core.multiarray _reconstruct",
            "numpy.core.multiarray scalar",
            "_codecs encode",
            "collections OrderedDict",
            "torch FloatStorage",
            "torch._utils _rebuild_tensor_v2",
            "copyreg _reconstructor",
            "some.module Thing",
        )
    ),
]


class Payload:
    """An object whose pickle makes a file when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


def hostile_pickles(path):
    """Return name -> pickle that makes the file `path` when plain pickle reads it."""
    payload = Payload(path)
    system = f"touch {path}".encode()
    named = b"c__builtin__\n%s\n"
    return {
        **{f"protocol {number}": pickle.dumps(payload, number) for number in (0, 2, 4)},
        "beside weights": pickle.dumps({"out.0.bias": np.zeros(2, np.float32), "x": payload}, 4),
        "as a name": pickle.dumps({payload: 1}, 2),
        "opcode INST": b"(S'" + system + b"'\nios\nsystem\n.",
        "opcode OBJ": b"(cos\nsystem\nS'" + system + b"'\no.",
        "function of an allowed module": b"c_codecs\nlookup_error\n(S'strict'\ntR0" + pickle.dumps(payload, 0),
        "attribute of an allowed name": pickle.PROTO
        + b"\x04\x8c\x07_codecs\x8c\x0fencode.__self__\x93"
        + pickle.dumps(payload, 4)[2:],
        "state": b"ccollections\nOrderedDict\n(tR(dS'x'\n" + pickle.dumps(payload, 0)[:-1] + b"sb.",
        "built-in": named % b"exec" + b"(S'open(" + repr(str(path)).replace("'", '"').encode() + b', "w")\'\ntR.',
    }


def hostile_files(content):
    """Return (ending, bytes) of every kind of file that may contain a pickle."""
    yield ".pkl", content
    yield ".pkl", content + hashlib.sha1(content).digest() + b"HCAJSLHD"
    yield ".pt", zipped({"archive/data.pkl": content})
    legacy = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])]
    for index in range(len(legacy)):
        yield ".pth", b"".join(legacy[:index]) + content + b"".join(legacy[index + 1 :])
    yield ".safetensors", content
    yield ".safetensors", len(content).to_bytes(8, "little") + content


class TestHostileFiles:
    @pytest.mark.parametrize("name", hostile_pickles("x"))
    def test_nothing_is_executed(self, tmp_path, name, convert_checkpoint):
        made = tmp_path / "made"
        content = hostile_pickles(made)[name]
        with suppress(Exception):  # some end in an error after they have made the file
            pickle.loads(content)
        assert made.exists(), "the test's own payload does not work"
        made.unlink()
        for ending, file in hostile_files(content):
            path = tmp_path / f"x{ending}"
            path.write_bytes(file)
            with pytest.raises(UserError, match=f"x{ending}"):
                convert.read(path)
            assert not made.exists(), ending
        code, _, errors = convert_checkpoint(path, tmp_path / "out.pkl")
        assert code == 2 and "Traceback" not in errors and not (tmp_path / "out.pkl").exists()

    @pytest.mark.parametrize(
        "read, names",
        [
            (read_pkl, ("numpy ndarray", "numpy dtype", "_codecs encode", "jittor Var")),
            (read_pt, ("torch FloatStorage", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")),
        ],
    )
    @pytest.mark.parametrize("state", [b"(dS'x'\nI1\ns", b"(N(dS'__defaults__'\n(I1\ntst"])
    def test_no_name_takes_state(self, read, names, state):
        for name in names:
            content = b"c" + name.replace(" ", "\n").encode() + b"\n" + state + b"b."
            if read is read_pt:
                content = zipped({"archive/data.pkl": content})
            with pytest.raises(UserError, match="asks for more than weights: state for"):
                read(content, "x")

    @pytest.mark.parametrize(
        "read", [read_pkl, lambda content, where: read_pt(zipped({"archive/data.pkl": content}), where)]
    )
    def test_a_pickle_that_needs_gigabytes_is_refused(self, read):
        with pytest.raises(UserError, match="billions"):
            read(b"\x80\x02}r\xff\xff\xff\x7f.", "x")

    def test_any_changed_byte_ends_in_a_clear_error_or_in_arrays(self):
        """Change bytes of the pickles themselves, without the checksums around them."""
        rs = np.random.RandomState(0)
        arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7)}
        entries = unzipped(write_pt(arrays))
        for original, read in (
            (pickle.dumps(arrays, 2), read_pkl),
            (pickle.dumps(arrays, 4), read_pkl),
            (
                entries["archive/data.pkl"],
                lambda content, where: read_pt(zipped({**entries, "archive/data.pkl": content}), where),
            ),
        ):
            refused = 0
            for _ in range(300):
                content = bytearray(original)
                content[rs.randint(len(content))] = rs.randint(256)
                try:
                    assert all(type(value) is np.ndarray for value in read(bytes(content), "x").values())
                except UserError:
                    refused += 1
            assert refused > 100

    @pytest.mark.parametrize("protocol", [0, 2, 4, 5])
    def test_any_changed_byte_of_a_training_checkpoint(self, protocol):
        """Change a file that also holds objects of other software, none of which may be made."""
        arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7)}
        others = {"args": argparse.Namespace(lr=1e-4), "best": np.float32(0.5), "at": {(1, 2): {3}}, "name": "x"}
        original = pickle.dumps({"state_dict": arrays, **others}, protocol)
        rs = np.random.RandomState(protocol)
        seen = Counter()
        for _ in range(300):
            content = bytearray(original)
            content[rs.randint(len(content))] = rs.randint(256)
            seen[outcome(partial(read_pkl, bytes(content), "x"), f"{bytes(content)}")] += 1
        assert seen["loaded"] > 20 and seen["refused"] > 20, seen

    @settings(max_examples=400, database=None, deadline=None)
    @given(program=st.lists(st.sampled_from(INSTRUCTIONS), max_size=40).map(b"".join))
    def test_any_program(self, program):
        """Any sequence of instructions ends in an error or in arrays, and calls nothing."""
        content = pickle.PROTO + b"\x02" + program + pickle.STOP
        outcome(lambda: read_pkl(content, "x"), program)
        outcome(lambda: read_pt(zipped({"archive/data.pkl": content, "archive/data/0": bytes(8)}), "x"), program)

    @pytest.mark.parametrize(
        "offset, size, stride",
        [
            (0, (5,), (1,)),
            (1, (4,), (1,)),
            (0, (2, 2), (4, 1)),
            (0, (2,), (-1,)),
            (-1, (2,), (1,)),
            (0, (8,), (0,)),
            (0, (2**40, 2**40), (0, 0)),
            (0, (2.0,), (1,)),
            (2**70, (1,), (1,)),
            (0, (4,), ()),
        ],
    )
    def test_a_tensor_outside_its_storage_is_refused(self, offset, size, stride):
        good = write_pt({"x": np.arange(4, dtype=np.float32)})
        assert read_pt(good, "x.pt")["x"].tolist() == [0, 1, 2, 3]
        entries = unzipped(good)
        before, after = (pickle.dumps(values, 2)[2:-1] for values in ((4,), (1,)))
        window = pickle.dumps(0, 2)[2:-1] + before + after
        assert window in entries["archive/data.pkl"]
        entries["archive/data.pkl"] = entries["archive/data.pkl"].replace(
            window, b"".join(pickle.dumps(value, 2)[2:-1] for value in (offset, size, stride))
        )
        with pytest.raises(UserError, match="x.pt"):
            read_pt(zipped(entries), "x.pt")

    @pytest.mark.parametrize("ending", FORMATS)
    @pytest.mark.parametrize("part", [0, 4, 0.5, 0.99, -1])
    def test_a_cut_file_is_refused(self, tmp_path, source, ending, part):
        path = tmp_path / f"x{ending}"
        convert.write(path, source)
        content = path.read_bytes()
        path.write_bytes(content[: part if isinstance(part, int) else int(part * len(content))])
        with pytest.raises(UserError, match=f"x{ending}"):
            convert.read(path, GIVEN)

    @pytest.mark.parametrize("ending", (".pt", ".pkl"))
    def test_a_changed_bit_is_found(self, tmp_path, source, ending):
        """Both formats contain checksums, which detect the change."""
        path = tmp_path / f"x{ending}"
        convert.write(path, source)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"x{ending}"):
            convert.read(path, GIVEN)

    def test_a_compressed_archive_is_refused(self):
        with pytest.raises(UserError, match="compressed"):
            read_pt(zipped(unzipped(write_pt({"x": np.zeros(9)})), zipfile.ZIP_DEFLATED), "x.pt")

    @pytest.mark.parametrize("state", [{"state": {}, "param_groups": [{"lr": 1e-4}]}, {"defaults": {"lr": 1e-4}}])
    def test_an_optimizers_state_is_named(self, state):
        with pytest.raises(UserError, match="optimizer.*emasavedmodel"):
            read_pkl(pickle.dumps(state, 4), "optsavedmodel000010.pkl")

    def test_entries_that_are_no_arrays_are_named(self):
        with pytest.raises(UserError, match="not arrays: epoch"):
            read_pkl(pickle.dumps({"x": np.zeros(2), "epoch": 3}, 4), "x.pkl")

    def test_an_array_of_objects_is_refused(self):
        with pytest.raises(UserError, match="O8"):
            read_pkl(pickle.dumps({"x": np.array([1, "a"], object)}, 4), "x.pkl")


READ_WITH_LITTLE_MEMORY = """
import json, pathlib, resource, sys
from guided_diffusion_core.conversion import convert
from guided_diffusion_core.errors import UserError

used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {spare}, used + {spare}))
for path in sys.argv[1:]:
    try:
        convert.read(path)
        found = "read"
    except UserError as error:
        found = str(error)
    print(json.dumps([pathlib.Path(path).stem, found]), flush=True)
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Return name -> message of every hostile file, read by a process that has 500 MiB of memory left."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = []
    for name, (ending, content) in hostile.checkpoints().items():
        paths.append(folder / f"{name}{ending}")
        paths[-1].write_bytes(content)
    code = READ_WITH_LITTLE_MEMORY.format(spare=500 * hostile.MEGABYTE)
    command = [sys.executable, "-c", code, *map(str, paths)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    # A hang in the hash of a nested tuple ends with the process alone: Python's own alarm would not be heard.
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300, env=environment)
    assert not done.stderr, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


class TestLittleMemory:
    @pytest.mark.parametrize("name", hostile.checkpoints())
    def test_a_small_file_is_refused_with_little_memory(self, refusals, name):
        message = refusals[name]
        assert name in message and ": found " in message and len(message) < 3000

    def test_more_memory_than_the_file_explains_is_named(self, refusals):
        for name in ("many tensors on one storage", "many arrays of the same bytes"):
            assert "found tensors of 20000 MiB in a file of" in refusals[name]

    def test_tied_weights_are_read(self):
        shared = np.ones((300, 2), np.float32)
        tree = {"a.weight": shared, "b.weight": shared}
        assert_bitwise(read_pkl(pickle.dumps(tree, 4), "x.pkl"), tree)


class TestNumpyPickles:
    @pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
    def test_orders_and_types(self, protocol):
        arrays = {
            "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "big": np.arange(3, dtype=">f4"),
            "scalar": np.array(7),
            "half": np.ones(2, np.float16),
            "flags": np.array([True, False]),
        }
        expected = {name: value.astype(value.dtype.newbyteorder("="), order="C") for name, value in arrays.items()}
        assert_bitwise(read_pkl(pickle.dumps(arrays, protocol), "x.pkl"), expected)

"""Test small files of data that ask for any amount of memory: each is refused with little memory and one message."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image
from support.backends import ROOT

MEGABYTE = 2**20


def nifti(shape=(4, 4, 4), offset=None, rest=b""):
    """Return a NIfTI file whose header claims a shape and an offset of the voxels."""
    content = bytearray(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes())
    content[42:48] = np.array(shape, "<i2").tobytes()  # dim[1] to dim[3]
    if offset is not None:
        content[108:112] = struct.pack("<f", offset)
    return bytes(content) + rest


def packed(start, zeros):
    """Return a gzip file of a start and many zeros."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(zeros // MEGABYTE):
            file.write(bytes(MEGABYTE))
    return buffer.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, notes=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + notes + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(**tags):
    """Return a TIFF file of 4 x 4 pixels with other values of some tags."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((4, 4), np.uint16))
    content = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        places = {name: (file.pages[0].tags[name].valueoffset, file.pages[0].tags[name].dtype) for name in tags}
    for name, value in tags.items():
        place, kind = places[name]
        content[place : place + 4] = struct.pack("<I", value) if int(kind) == 4 else struct.pack("<HH", value, 0)
    return bytes(content)


def encoded(kind, size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return bytearray(buffer.getvalue())


def npy(shape):
    text = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def jpeg(side):
    content = encoded("JPEG")
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", side, side)
    return bytes(content)


def bmp(side):
    content = encoded("BMP")
    content[18:26] = struct.pack("<ii", side, side)
    return bytes(content)


def hostile_files():
    """Return name of a file -> content."""
    note = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(650 * MEGABYTE), 1))
    mha = b"ObjectType = Image\nNDims = 3\nDimSize = 60000 60000 60000\nElementType = MET_DOUBLE\n"
    mha += b"ElementDataFile = LOCAL\n"
    nrrd = b"NRRD0004\ntype: double\ndimension: 3\nsizes: 60000 60000 60000\nencoding: gzip\n\n"
    return {
        "zeros behind the voxels.nii.gz": packed(nifti(), 650 * MEGABYTE),
        "a large claim.nii.gz": packed(nifti((32767, 32767, 32767)), 64 * MEGABYTE),
        "a large claim without content.nii.gz": packed(nifti((8000, 8000, 12)), 0),
        "a late offset.nii.gz": packed(nifti(offset=2e9), 650 * MEGABYTE),
        "a late offset.nii": nifti(offset=2e9),
        "an endless offset.nii": nifti(offset=float("inf")),
        "no number as offset.nii.gz": packed(nifti(offset=float("nan")), 650 * MEGABYTE),
        "a large claim.nii": nifti((32767, 32767, 32767)),
        "a large claim.npy": npy((2**40,)),
        "many axes.npy": npy((1,) * 5000),
        "an overflow.npy": npy((2**62, 2**62, 2**62)),
        "a large claim.mha": mha,
        "a large claim.nrrd": nrrd + gzip.compress(bytes(1000)),
        "many pixels.png": png(2**31 - 1, 2**31 - 1),
        "as many pixels.png": png(60000, 60000),
        "a long note.png": png(30000, 5000, note),
        "many pixels.bmp": bmp(2**31 - 1),
        "many pixels.jpg": jpeg(65535),
        "many pixels.tif": tiff(ImageWidth=2**31, ImageLength=2**31),
        "many channels.tif": tiff(SamplesPerPixel=65535, ImageWidth=9000, ImageLength=9000),
    }


READ_WITH_LITTLE_MEMORY = """
import json, pathlib, resource, sys, warnings
from guided_diffusion_core.data.formats import rasters, volumes
from guided_diffusion_core.errors import UserError

warnings.simplefilter("ignore")
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {spare}, used + {spare}))
for path in sys.argv[1:]:
    is_volume = pathlib.Path(path).name.partition(".")[2] in ("nii", "nii.gz", "npy", "mha", "nrrd")
    actions = (volumes.read_geometry, volumes.read_volume) if is_volume else (rasters.read_header, rasters.read_raster)
    for action in actions:
        try:
            action(path)
            found = "read"
        except UserError as error:
            found = str(error)
    print(json.dumps([pathlib.Path(path).name, found]), flush=True)
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Return name -> message of every hostile file, read by a process that has 500 MiB of memory left."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = []
    for name, content in hostile_files().items():
        paths.append(folder / name)
        paths[-1].write_bytes(content)
    code = READ_WITH_LITTLE_MEMORY.format(spare=500 * MEGABYTE)
    command = [sys.executable, "-c", code, *map(str, paths)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


NAMES = (
    "zeros behind the voxels.nii.gz",
    "a large claim.nii.gz",
    "a large claim without content.nii.gz",
    "a late offset.nii.gz",
    "a late offset.nii",
    "an endless offset.nii",
    "no number as offset.nii.gz",
    "a large claim.nii",
    "a large claim.npy",
    "many axes.npy",
    "an overflow.npy",
    "a large claim.mha",
    "a large claim.nrrd",
    "many pixels.png",
    "as many pixels.png",
    "a long note.png",
    "many pixels.bmp",
    "many pixels.jpg",
    "many pixels.tif",
    "many channels.tif",
)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_refused_with_little_memory(refusals, name):
    message = refusals[name]
    assert name in message and ": found " in message and len(message) < 2000, message


def test_every_file_is_tried(refusals):
    assert tuple(refusals) == NAMES


def test_the_claim_is_named(refusals):
    assert "a header that asks for" in refusals["a large claim.nii.gz"]
    assert "behind the" in refusals["zeros behind the voxels.nii.gz"]
    assert "too large a picture" in refusals["as many pixels.png"]

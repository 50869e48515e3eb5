"""Damage copies of files: flip, remove, insert or overwrite bytes. The same seed gives the same damage."""

import gzip
import zlib

import numpy as np

HEADER = 400  # bytes at the start of a file, which every second fault hits
PNG_SIGNATURE = 8  # bytes
KINDS = ("flip", "value", "cut", "zeros", "ones", "insert", "remove")


def mutants(content, count, seed):
    """Yield `count` pairs (description of the damage, damaged content)."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        reach = min(HEADER, len(content)) if number % 2 else len(content)
        where = int(generator.integers(0, reach))
        length = int(generator.integers(1, 9 if number % 3 else 200))
        kind = KINDS[number % len(KINDS)]
        yield f"{kind} {length} at {where}", _damaged(bytearray(content), kind, where, length, generator)


def _damaged(content, kind, where, length, generator):
    end = min(where + length, len(content))
    if kind == "flip":
        for place in range(where, end):
            content[place] ^= 1 << int(generator.integers(8))
    elif kind == "value":
        content[where:end] = generator.integers(0, 256, end - where, np.uint8).tobytes()
    elif kind == "cut":
        del content[where:]
    elif kind in ("zeros", "ones"):
        content[where:end] = (b"\0" if kind == "zeros" else b"\xff") * (end - where)
    elif kind == "insert":
        content[where:where] = generator.integers(0, 256, length, np.uint8).tobytes()
    else:
        del content[where:end]
    return bytes(content)


def inner_mutants(content, count, seed, kind):
    """Yield pairs like `mutants`, but with correct checksums of "gzip" or "png", so that the decoder goes on.

    kind: "gzip" or "png".
    """
    if kind == "gzip":
        for damage, damaged in mutants(gzip.decompress(content), count, seed):
            yield f"inside, {damage}", gzip.compress(damaged, 1)
    else:
        for damage, damaged in mutants(content, count, seed):
            yield f"checksums, {damage}", with_checksums(damaged)


def with_checksums(png):
    """Return a PNG file with correct checksums in all chunks that can be found."""
    content = bytearray(png)
    place = PNG_SIGNATURE
    # a chunk: length (4 bytes), type (4), data, CRC-32 of type and data (4)
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(content)

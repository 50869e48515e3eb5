"""Damaged copies of files: flipped bytes, lost ends, holes and foreign bytes, the same from the same seed."""

import gzip
import zlib

import numpy as np

HEADER = 400  # bytes at the start of a file, where every second fault goes
PNG_SIGNATURE = 8


def mutants(content, count, seed):
    """Yield `count` pairs (what was done, damaged bytes)."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        where = int(generator.integers(0, min(HEADER, len(content)) if number % 2 else len(content)))
        length = int(generator.integers(1, 9 if number % 3 else 200))
        kind = ("flip", "value", "cut", "zeros", "ones", "insert", "remove")[number % 7]
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
    """The same, but with the checksums of "gzip" or "png" right, so that the fault gets past them."""
    if kind == "gzip":
        for done, damaged in mutants(gzip.decompress(content), count, seed):
            yield f"inside, {done}", gzip.compress(damaged, 1)
    else:
        for done, damaged in mutants(content, count, seed):
            yield f"checksums, {done}", with_checksums(damaged)


def with_checksums(png):
    """A PNG file whose chunks, as far as they can be told, have the checksums of their content."""
    content = bytearray(png)
    place = PNG_SIGNATURE
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(content)

"""Gzip in one pass: from a file straight into an array, from slices straight into a file."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_GZIP = 31
"""zlib's code for a gzip header and a trailer with checksum; the header holds no name, no time."""
_READ, _STEP = 1 << 16, 1 << 20
"""Compressed bytes read and decompressed bytes made at a time."""
_LARGEST_RATIO = 1100
"""Deflate cannot shrink anything further; a header that promises more is damaged."""


def inflate_into(content: np.ndarray, path: Path, start: int) -> None:
    """Fill `content` (uint8) with a gzip file's decompressed bytes from `start` on.

    The file is read to its end, so that its checksum is verified too.

    Raises:
        EOFError: the file holds fewer bytes.
        zlib.error: the file is damaged, or not gzip.
    """
    position = -start
    with path.open("rb", buffering=0) as file:
        compressed, stream = b"", zlib.decompressobj(_GZIP)
        while not (stream.eof and position >= content.size):
            if stream.eof:  # gzip allows several members in a row
                compressed, stream = stream.unused_data, zlib.decompressobj(_GZIP)
            compressed = stream.unconsumed_tail or compressed or file.read(_READ)
            if not compressed:
                raise EOFError("the file ends too early")
            piece = np.frombuffer(stream.decompress(compressed, _STEP), np.uint8)
            compressed = b""
            low, high = max(position, 0), min(position + piece.size, content.size)
            if high > low:
                content[low:high] = piece[low - position : high - position]
            position += piece.size


def empty_for(path: Path, size: int) -> np.ndarray:
    """Return an array of `size` bytes, refusing more than the file can hold.

    It is mapped, not allocated: dropped, it goes back to the system at once, where the allocator
    would keep a freed label map for each thread.

    Raises:
        EOFError: a gzip file of this length cannot hold that much.
    """
    if size > _LARGEST_RATIO * path.stat().st_size:
        raise EOFError("the file is too short for what its header promises")
    if size == 0:
        return np.empty(0, np.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.uint8)


def write_gzip(path: Path, pieces: Iterable[bytes], runs: bool) -> None:
    """Compress and write pieces one after the other; the same pieces give the same bytes.

    `runs` suits label maps, which are made of long runs of one value: it looks for nothing else,
    which makes them both smaller and sooner written.
    """
    strategy = zlib.Z_RLE if runs else zlib.Z_DEFAULT_STRATEGY
    stream = zlib.compressobj(1, zlib.DEFLATED, _GZIP, zlib.DEF_MEM_LEVEL, strategy)
    with path.open("wb") as file:
        for piece in pieces:
            file.write(stream.compress(piece))
        file.write(stream.flush())

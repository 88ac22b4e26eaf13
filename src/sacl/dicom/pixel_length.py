"""Whether a file holds all of its pixels, told by lengths alone; nothing is decoded."""

from __future__ import annotations

from typing import IO, Literal

from pydicom import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

PixelState = Literal["whole", "truncated", "none", "float"]
"""All pixels are there; the file ends before them; it has none; they are no integers."""

_INTEGERS = b"\xe0\x7f\x10\x00"
_FLOATS = (b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00")
_LONG_FORMS = (b"OB", b"OW", b"UN")
_ITEM = b"\xfe\xff\x00\xe0"
_END = b"\xfe\xff\xdd\xe0"
_UNDEFINED = 0xFFFFFFFF


def pixel_state(stream: IO[bytes], size: int, header: Dataset) -> PixelState:
    """Tell whether the pixels at which reading the header stopped are whole.

    Native pixels are whole where rows x columns x samples x frames x bytes are left in the file,
    compressed ones where every fragment is, up to the end mark. Of a deflated or big-endian file
    the header alone is judged; decoding tells the rest.

    Args:
        stream: the file, right behind the header.
        size: bytes of the whole file.
        header: what was read of it.
    """
    syntax = UID(header.file_meta.get("TransferSyntaxUID") or "1.2.840.10008.1.2")
    if syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        return "whole"
    tag = stream.read(4)
    if tag in _FLOATS:
        return "float"
    if tag != _INTEGERS:
        return "truncated" if 0 < len(tag) < 4 else "none"
    field = stream.read(8)
    start = stream.tell()
    if field[:2] in _LONG_FORMS and not header.original_encoding[0]:
        length = int.from_bytes(field[4:], "little")
    else:
        length, start = int.from_bytes(field[:4], "little"), start - 4
    if length == _UNDEFINED or syntax.is_encapsulated:
        stream.seek(start)
        return _fragments(stream)
    held = min(length, size - start)
    return "whole" if held >= _expected(header) > 0 else "truncated"


def _expected(header: Dataset) -> int:
    pixels = int(header.get("Rows") or 0) * int(header.get("Columns") or 0)
    frames = int(header.get("NumberOfFrames") or 1) * int(header.get("SamplesPerPixel") or 1)
    return pixels * frames * int(header.get("BitsAllocated") or 0) // 8


def _fragments(stream: IO[bytes]) -> PixelState:
    """Step over the fragments of compressed pixels to the end mark (PS3.5, A.4).

    A step beyond the end of the file finds no mark there.
    """
    while len(mark := stream.read(8)) == 8:
        if mark[:4] == _END:
            return "whole"
        if mark[:4] != _ITEM:
            break
        stream.seek(int.from_bytes(mark[4:], "little"), 1)
    return "truncated"

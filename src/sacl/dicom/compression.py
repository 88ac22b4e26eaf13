"""Which compressions of pixels can be undone here, and what to install for the others."""

from __future__ import annotations

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

_JPEG = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81))
"""JPEG and JPEG-LS; JPEG 2000 is decoded by what every installation has."""


def decodable(transfer_syntax: str) -> bool:
    """Tell whether an installed package decodes a transfer syntax."""
    try:
        return get_decoder(UID(transfer_syntax or "1.2.840.10008.1.2")).is_available
    except (NotImplementedError, ValueError):
        return False


def compression_name(transfer_syntax: str) -> str:
    """Return the name of a transfer syntax, its number where it has none."""
    return UID(transfer_syntax).name if transfer_syntax else "none"


def remedy(transfer_syntax: str) -> str:
    """Return what to do about a compression that nothing here decodes."""
    if transfer_syntax in _JPEG:
        return "`pip install 'sacl[jpeg]'`, or export the series uncompressed"
    return "export the series uncompressed"

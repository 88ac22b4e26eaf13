"""Why a series or an archive is rejected: a code for machines, one sentence for people."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass

from pydicom.errors import BytesLengthException, InvalidDicomError

CODES = {
    "unsafe_archive": "a zip with a name, link or size that could do harm",
    "damaged_archive": "a zip that cannot be read, or is encrypted",
    "no_permission": "a file, folder or zip that may not be read",
    "wrong_modality": "neither CT nor MR, or not the modality that was asked for",
    "localizer": "a scout, by its ImageType",
    "secondary_capture": "a screenshot or a scanned document",
    "derived": "a projection, a reformat or a map computed from another series",
    "color": "pixels in color",
    "inverted_gray": "MONOCHROME1: dark and bright are exchanged",
    "unsupported_multiframe": "several frames without a position for each",
    "unsupported_pixels": "pixels that are no plain integers with a slope and an intercept",
    "missing_tags": "a tag is missing, without which the scan has no grid or no pixels",
    "missing_decoder": "a compression that no installed package decodes",
    "truncated_pixels": "a file ends before its pixels do",
    "bad_geometry": "spacing or orientation that cannot be",
    "mixed_orientation": "slices in many directions that form no stack",
    "too_few_slices": "fewer slices than a scan has",
    "repeated_positions": "a position taken twice with different content",
    "missing_slices": "gaps between the slices",
    "uneven_slices": "slices that lie on no even grid",
    "no_rescale": "a CT whose values cannot be HU and that does not say how to get them",
    "not_largest": "another series of the study has more slices (ingest.series: largest)",
}
"""Every reason for which a series is rejected."""

DAMAGE = (
    *(InvalidDicomError, BytesLengthException, zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, OSError, ArithmeticError, AttributeError, LookupError, NotImplementedError),
    *(RuntimeError, TypeError, ValueError),
)
"""What reading a damaged file or archive raises."""


@dataclass(frozen=True)
class Fault:
    """The one reason why a series is rejected; the sentence names the remedy, but no person."""

    code: str
    sentence: str

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code

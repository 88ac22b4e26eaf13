"""What makes a series no scan, told by its headers: the first that applies is the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sacl.dicom.compression import compression_name, decodable, remedy
from sacl.dicom.faults import Fault
from sacl.dicom.geometry import plane_fault
from sacl.dicom.series import is_localizer
from sacl.dicom.slices import Slice

_COMPUTED = frozenset(
    (
        *("SECONDARY", "MIP", "MINIP", "MPR", "CPR", "VRT", "VRT_3D", "SSD", "REFORMATTED"),
        *("PROJECTION IMAGE", "PROJECTION", "CURVED", "SUBTRACT", "SUBTRACTION", "PERFUSION"),
        *("ADC", "FA", "TRACEW", "IVI"),
    )
)
"""ImageType values of pictures computed from another series of the study."""
_INTEGER_BITS = (8, 16, 32)


def header_fault(slices: Sequence[Slice], modality: str) -> Fault | None:
    """Return why slices are no scan, as far as headers tell; None where they may be one.

    Args:
        slices: of one series.
        modality: `ct` or `mr` where only that is wanted, `auto` for both.
    """
    fault = _modality_fault(slices, modality)
    if fault is not None:
        return fault
    for check in _CHECKS:
        fault = check(slices)
        if fault is not None:
            return fault
    return None


def _modality_fault(slices: Sequence[Slice], wanted: str) -> Fault | None:
    found = slices[0].modality
    allowed = ("CT", "MR") if wanted == "auto" else (wanted.upper(),)
    if found in allowed:
        return None
    told = found if found.isalnum() and len(found) <= 16 else "none"
    why = "" if wanted == "auto" else "; ingest.modality asks for it"
    return Fault("wrong_modality", f"modality {told}, expected {' or '.join(allowed)}{why}")


def _localizer(slices: Sequence[Slice]) -> Fault | None:
    if not any(is_localizer(piece) for piece in slices):
        return None
    return Fault("localizer", "its ImageType says localizer: an overview, not a scan")


def _secondary_capture(slices: Sequence[Slice]) -> Fault | None:
    if not any(piece.converted for piece in slices):
        return None
    return Fault("secondary_capture", "a screenshot or scanned document, not a scan")


def _color(slices: Sequence[Slice]) -> Fault | None:
    for piece in slices:
        kind = piece.encoding.photometric
        if piece.encoding.samples != 1 or kind.startswith(("RGB", "YBR", "PALETTE")):
            return Fault("color", f"pixels in color ({kind or 'unnamed'}), expected MONOCHROME2")
        if kind == "MONOCHROME1":
            return Fault(
                "inverted_gray", "MONOCHROME1, dark and bright exchanged; expected MONOCHROME2"
            )
    return None


def _derived(slices: Sequence[Slice]) -> Fault | None:
    values = {value for piece in slices for value in piece.traits.image_type}
    words = sorted(_COMPUTED & (values | {word for value in values for word in value.split()}))
    if not words:
        return None
    return Fault(
        "derived",
        f"its ImageType says {words[0]}: computed from another series; take that one",
    )


def _no_pixels(slices: Sequence[Slice]) -> Fault | None:
    states = [piece.pixels for piece in slices]
    if "float" in states:
        return Fault("unsupported_pixels", "floating-point pixels, expected integers")
    if states.count("none"):
        return Fault(
            "missing_tags", f"{states.count('none')} of {len(states)} files have no pixels"
        )
    return None


def _missing_tags(slices: Sequence[Slice]) -> Fault | None:
    if any(piece.frames > 1 for piece in slices):
        return Fault(
            "unsupported_multiframe",
            f"{slices[0].frames} frames in one file without a position for each; export single"
            " slices or enhanced multi-frame CT or MR",
        )
    wanted: dict[str, Callable[[Slice], object]] = {
        "ImagePositionPatient": lambda piece: piece.position_mm,
        "ImageOrientationPatient": lambda piece: piece.orientation,
        "PixelSpacing": lambda piece: piece.spacing_mm,
        "Rows or Columns": lambda piece: min(piece.encoding.rows, piece.encoding.columns) or None,
        "BitsAllocated": lambda piece: piece.encoding.bits_allocated or None,
        "BitsStored": lambda piece: piece.encoding.bits_stored or None,
    }
    for name, value in wanted.items():
        missing = sum(value(piece) is None for piece in slices)
        if missing:
            return Fault(
                "missing_tags",
                f"{name} is missing or no number in {missing} of {len(slices)} slices; export"
                " the series again",
            )
    return None


def _pixels(slices: Sequence[Slice]) -> Fault | None:
    for piece in slices:
        code = piece.encoding
        if code.has_lut:
            return Fault("unsupported_pixels", "a modality LUT, expected RescaleSlope")
        if code.bits_allocated not in _INTEGER_BITS or code.bits_stored > code.bits_allocated:
            return Fault(
                "unsupported_pixels",
                f"{code.bits_stored} bits stored of {code.bits_allocated} allocated, expected 8, 16"
                " or 32 allocated",
            )
        if piece.slope == 0:
            return Fault("unsupported_pixels", "RescaleSlope is 0: every voxel has one value")
        if not decodable(code.transfer_syntax):
            name = compression_name(code.transfer_syntax)
            return Fault(
                "missing_decoder",
                f"no decoder is installed for {name}; {remedy(code.transfer_syntax)}",
            )
    cut = sum(piece.pixels == "truncated" for piece in slices)
    if cut:
        return Fault(
            "truncated_pixels",
            f"{cut} of {len(slices)} files end before their pixels do; copy or export them again",
        )
    return None


def _plane(slices: Sequence[Slice]) -> Fault | None:
    return next((fault for fault in map(plane_fault, slices) if fault is not None), None)


_CHECKS = (
    *(_localizer, _secondary_capture, _color, _derived),
    *(_no_pixels, _missing_tags, _pixels, _plane),
)

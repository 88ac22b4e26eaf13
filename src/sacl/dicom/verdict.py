"""Judge a series: accepted as a scan, or rejected for one reason."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Shaped

from sacl.dicom.files import DAMAGE, Fault, Opener
from sacl.dicom.header import near, text
from sacl.dicom.phase import scan_labels
from sacl.dicom.series import MIN_SLICES, Series, is_localizer
from sacl.dicom.slices import Slice, read_dataset
from sacl.dicom.stack import (
    SAME_PLACE_MM,
    SliceStack,
    decoder_fault,
    mixed_fault,
    padding_of,
    plane_fault,
    positions,
    rescaled,
    stack,
    stored_pixels,
)

_COMPUTED = {
    *("SECONDARY", "MIP", "MINIP", "MPR", "CPR", "VRT", "VRT_3D", "SSD", "REFORMATTED", "IVI"),
    *("PROJECTION", "CURVED", "SUBTRACT", "SUBTRACTION", "PERFUSION", "ADC", "FA", "TRACEW"),
}
"""Words in ImageType of pictures computed from another series of the study."""
_TILT_DEG = 0.05
"""A tilt below this is rounding."""
_NEEDED: dict[str, Callable[[Slice], object]] = {
    "ImagePositionPatient": lambda piece: piece.position_mm,
    "ImageOrientationPatient": lambda piece: piece.orientation,
    "PixelSpacing": lambda piece: piece.spacing_mm,
    "Rows or Columns": lambda piece: min(piece.encoding.rows, piece.encoding.columns),
    "BitsAllocated": lambda piece: piece.encoding.bits_allocated,
    "BitsStored": lambda piece: piece.encoding.bits_stored,
}
"""What every slice has to say, by name."""
_AIR_HU = -500.0
"""The darkest voxel of a CT in HU lies below: there is air around or in everybody."""
_UNREADABLE = Fault("truncated_pixels", "its pixels cannot be decoded; copy or export it again")


@dataclass(frozen=True)
class DicomExport:
    """How an export is read: which series become scans, and where the key to the patients is.

    `series` is `all` for every accepted series, or `largest` for the one of each study that has
    the most slices. `modality` is `auto` for CT and MR. Without a key, pseudonyms are drawn for
    this once and forgotten.
    """

    modality: Literal["auto", "ct", "mr"] = "auto"
    series: Literal["all", "largest"] = "all"
    key: Path | None = None


@dataclass(frozen=True, eq=False)
class Verdict:
    """What became of a series: accepted with its stack and labels, or rejected by its fault."""

    series: Series
    fault: Fault | None = None
    stack: SliceStack | None = None
    notes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    phase_reason: str = ""

    @property
    def accepted(self) -> bool:
        """Tell whether the series is a scan."""
        return self.fault is None


def judge_series(series: Series, opener: Opener, wanted: str = "auto") -> Verdict:
    """Return the verdict on a series that is to be of the wanted modality.

    Headers decide. Pixels are read only of slices that share a position, and of three slices of a
    CT that has no rescale values.
    """
    stacked = _stacked(series.slices, wanted, opener)
    if isinstance(stacked, Fault):
        return Verdict(series, stacked)
    try:
        header = read_dataset(stacked.slices[0].source, opener)
        labels, why = scan_labels(header, stacked.slices[0].modality)
        lossy = text(header, "LossyImageCompression") == "01"
    except DAMAGE:
        return Verdict(series, _UNREADABLE)
    notes = _notes(stacked, len(series.slices) - len(stacked.slices), lossy)
    return Verdict(series, None, stacked, notes, labels, why)


def _stacked(slices: Sequence[Slice], wanted: str, opener: Opener) -> SliceStack | Fault:
    """Return slices as a stack, identical copies left out, or why they are no scan."""
    fault = next(_header_faults(slices, wanted), None) or mixed_fault(slices)
    if fault is not None:
        return fault
    places = positions(slices)
    fault = _copies_fault(places, opener)
    if fault is not None:
        return fault
    if len(places) < MIN_SLICES:
        return Fault("too_few_slices", f"{len(places)} slices, expected {MIN_SLICES} at least")
    stacked = stack([place[0] for place in places])
    return stacked if isinstance(stacked, Fault) else _rescale_fault(stacked, opener) or stacked


def only_largest(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Reject all accepted series of a study but the one with the most slices, the first of equals.

    More pixels per slice, then the lower series number decide between equals.
    """
    accepted = [verdict for verdict in verdicts if verdict.accepted]
    best = {verdict.series.study: verdict for verdict in sorted(accepted[::-1], key=_size)}
    kept = []
    for verdict in verdicts:
        chosen = best.get(verdict.series.study, verdict)
        why = (
            f"{len(verdict.series.slices)} slices; another series of the study has"
            f" {len(chosen.series.slices)} and ingest.series is 'largest'"
        )
        is_kept = not verdict.accepted or verdict is chosen
        kept.append(verdict if is_kept else Verdict(verdict.series, Fault("not_largest", why)))
    return kept


def beside_others(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Note on an accepted scan that others of its series, such as a cine's, have more slices."""
    keys = [(*v.series.identity.scan, re.sub(r"[\d.]+", "", v.series.part)) for v in verdicts]
    counts = [len(v.stack.slices) if v.stack is not None else 0 for v in verdicts]
    most: dict[tuple[str, ...], int] = {}
    for key, count in zip(keys, counts, strict=True):
        most[key] = max(count, most.get(key, 0))
    noted = []
    for verdict, key, count in zip(verdicts, keys, counts, strict=True):
        note = f"{count} slices, where another scan of its series has {most[key]}"
        is_short = verdict.accepted and verdict.series.part and count < most[key]
        notes = (*verdict.notes, note) if is_short else verdict.notes
        noted.append(dataclasses.replace(verdict, notes=notes))
    return noted


def _size(verdict: Verdict) -> tuple[int, int, int]:
    assert verdict.stack is not None
    i, j, k = verdict.stack.grid.shape
    number = verdict.series.slices[0].series_number
    return k, i * j, -(number if number is not None else 1_000_000)


def _copies_fault(places: Sequence[Sequence[Slice]], opener: Opener) -> Fault | None:
    """Return a fault where several slices of a position are no copies of each other."""
    taken = [place for place in places if len(place) > 1]
    try:
        if all(_are_copies(place, opener) for place in taken):
            return None
    except DAMAGE:
        return _UNREADABLE
    return Fault(
        "repeated_positions",
        f"{len(taken)} of {len(places)} positions are taken several times with different content,"
        " and no tag tells the scans apart; export them as series of their own",
    )


def _are_copies(place: Sequence[Slice], opener: Opener) -> bool:
    first = place[0].position_mm
    planes = [_values([piece], opener)[0] for piece in place]
    return all(near(piece.position_mm, first, SAME_PLACE_MM) for piece in place) and all(
        np.array_equal(plane, planes[0]) for plane in planes
    )


def _values(slices: Sequence[Slice], opener: Opener) -> list[Shaped[np.ndarray, "row column"]]:
    return list(map(rescaled, stored_pixels(slices, opener), slices))


def _lacks_rescale(piece: Slice) -> bool:
    return piece.modality == "CT" and (piece.slope is None or piece.intercept is None)


def _rescale_fault(stacked: SliceStack, opener: Opener) -> Fault | None:
    """Return a fault where a CT without rescale values holds no HU, by three of its slices."""
    if not any(map(_lacks_rescale, stacked.slices)):
        return None
    count = len(stacked.slices)
    some = [stacked.slices[k] for k in (0, count // 2, count - 1)]
    try:
        low = min(float(plane.min()) for plane in _values(some, opener))
    except DAMAGE:
        return _UNREADABLE
    why = (
        f"no RescaleSlope or RescaleIntercept, and the lowest value, {low:g}, is not that of air in"
        " HU; export the original series"
    )
    return Fault("no_rescale", why) if low > _AIR_HU else None


def _notes(stacked: SliceStack, copies: int, lossy: bool) -> tuple[str, ...]:
    """Return what was odd of an accepted series, and what was done about it."""
    slices = stacked.slices
    scales = {(piece.slope, piece.intercept) for piece in slices}
    acquisitions = {piece.acquisition for piece in slices}
    is_tilted = stacked.tilt_deg > _TILT_DEG
    remarks = {
        f"{copies} identical copies of slices left out": copies > 0,
        f"gantry tilt {stacked.tilt_deg:.1f} degrees, kept as a sheared grid": is_tilted,
        f"{len(scales)} rescale slopes or intercepts, each slice's own applied": len(scales) > 1,
        "no rescale values, but the values look like HU": any(map(_lacks_rescale, slices)),
        f"{len(acquisitions)} acquisitions in one even stack": len(acquisitions) > 1,
        "lossily compressed": lossy,
        "its ImageType says DERIVED": slices[0].image_type[:1] == ("DERIVED",),
        "its padding value could be tissue, so it is not taken for padding": any(
            padding_of(piece) != piece.encoding.padding for piece in slices
        ),
    }
    return tuple(itertools.compress(remarks, remarks.values()))


def _header_faults(slices: Sequence[Slice], wanted: str) -> Iterator[Fault]:
    """Yield why slices are no scan, as far as headers tell; the first is the reason."""
    yield from _kind_faults(slices, ("CT", "MR") if wanted == "auto" else (wanted.upper(),))
    yield from _tag_faults(slices)
    for piece in slices:
        yield from _pixel_faults(piece)
    syntaxes = dict.fromkeys(piece.encoding.transfer_syntax for piece in slices)
    yield from filter(None, map(decoder_fault, syntaxes))
    cut = sum(piece.pixels == "truncated" for piece in slices)
    if cut:
        why = f"{cut} of {len(slices)} files end before their pixels do; copy or export them again"
        yield Fault("truncated_pixels", why)
    yield from filter(None, map(plane_fault, slices))


def _kind_faults(slices: Sequence[Slice], modalities: Sequence[str]) -> Iterator[Fault]:
    modality = slices[0].modality
    if modality not in modalities:
        name = modality if modality.isalnum() and len(modality) <= 16 else "none"
        why = "; ingest.modality asks for it" if len(modalities) == 1 else ""
        expected = " or ".join(modalities)
        yield Fault("wrong_modality", f"modality {name}, expected {expected}{why}")
    if any(map(is_localizer, slices)):
        yield Fault("localizer", "its ImageType says localizer: an overview, not a scan")
    if any(piece.converted for piece in slices):
        yield Fault("secondary_capture", "a screenshot or scanned document, not a scan")
    for piece in slices:
        kind = piece.encoding.photometric
        if piece.encoding.samples != 1 or kind.startswith(("RGB", "YBR", "PALETTE")):
            yield Fault("color", f"pixels in color ({kind or 'unnamed'}), expected MONOCHROME2")
        if kind == "MONOCHROME1":
            why = "MONOCHROME1, dark and bright exchanged; expected MONOCHROME2"
            yield Fault("inverted_gray", why)
    words = {word for piece in slices for value in piece.image_type for word in value.split()}
    for word in sorted(_COMPUTED & words):
        why = f"its ImageType says {word}: computed from another series; take that one"
        yield Fault("derived", why)


def _tag_faults(slices: Sequence[Slice]) -> Iterator[Fault]:
    states = [piece.pixels for piece in slices]
    if "float" in states:
        yield Fault("unsupported_pixels", "floating-point pixels, expected integers")
    if "none" in states:
        why = f"{states.count('none')} of {len(states)} files have no pixels"
        yield Fault("missing_tags", why)
    if any(piece.frames > 1 for piece in slices):
        yield Fault(
            "unsupported_multiframe",
            f"{slices[0].frames} frames in one file without a position for each; export single"
            " slices or enhanced multi-frame CT or MR",
        )
    for name, value in _NEEDED.items():
        missing = sum(value(piece) in (None, 0) for piece in slices)
        if missing:
            why = f"{name} is missing or no number in {missing} of {len(slices)} slices"
            yield Fault("missing_tags", f"{why}; export the series again")


def _pixel_faults(piece: Slice) -> Iterator[Fault]:
    code = piece.encoding
    if code.has_lut:
        yield Fault("unsupported_pixels", "a modality LUT, expected RescaleSlope")
    if code.bits_allocated not in (8, 16, 32) or code.bits_stored > code.bits_allocated:
        bits = f"{code.bits_stored} bits stored of {code.bits_allocated} allocated"
        yield Fault("unsupported_pixels", f"{bits}, expected 8, 16 or 32 allocated")
    if piece.slope == 0:
        yield Fault("unsupported_pixels", "RescaleSlope is 0: every voxel has one value")
    if any(math.isnan(x) for x in (piece.slope, piece.intercept) if x is not None):
        why = "RescaleSlope or RescaleIntercept is no finite number; export the series again"
        yield Fault("unsupported_pixels", why)

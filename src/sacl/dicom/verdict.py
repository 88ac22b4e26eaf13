"""Judge a series: accepted as a scan, or rejected for one reason."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sacl.dicom.checks import header_fault
from sacl.dicom.faults import Fault
from sacl.dicom.files import DAMAGE, Opener
from sacl.dicom.geometry import SAME_PLACE_MM, UNIT, SliceStack, positions, stack
from sacl.dicom.headers import read_dataset
from sacl.dicom.series import Series
from sacl.dicom.slices import Slice
from sacl.dicom.tags import scan_labels
from sacl.dicom.values import near, text
from sacl.dicom.volume import padding_applies, rescaled, stored_pixels

_AIR_HU = -500.0
"""The darkest voxel of a CT in HU lies below: there is air around or in everybody."""
_UNREADABLE = Fault("truncated_pixels", "its pixels cannot be decoded; copy or export it again")


@dataclass(frozen=True)
class Rule:
    """Which series become scans.

    `series` is `all` for every accepted series, or `largest` for the one of each study that has
    the most slices. `modality` is `auto` for CT and MR.
    """

    modality: Literal["auto", "ct", "mr"] = "auto"
    series: Literal["all", "largest"] = "all"
    min_slices: int = 5


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


def judge(series: Series, rule: Rule, opener: Opener) -> Verdict:
    """Return the verdict on a series.

    Headers decide. Pixels are read only of slices that share a position, to tell copies from
    contradictions, and of three slices of a CT that has no rescale values.
    """
    found = _stacked(series.slices, rule, opener)
    if isinstance(found, Fault):
        return Verdict(series, found)
    stacked, copies = found
    try:
        header = read_dataset(stacked.slices[0].source, opener)
        labels, why = scan_labels(header, stacked.slices[0].modality)
        lossy = text(header, "LossyImageCompression") == "01"
    except DAMAGE:
        return Verdict(series, _UNREADABLE)
    return Verdict(series, None, stacked, _notes(stacked, copies, lossy), labels, why)


def _stacked(
    slices: tuple[Slice, ...], rule: Rule, opener: Opener
) -> tuple[SliceStack, int] | Fault:
    """Return slices as a stack and how many copies were left out, or why they are no scan."""
    fault = header_fault(slices, rule.modality) or _mixed(slices)
    if fault is not None:
        return fault
    kept, copies = _without_copies(slices, opener)
    if isinstance(kept, Fault):
        return kept
    if len(kept) < max(rule.min_slices, 2):
        told = f"{len(kept)} slices, expected {rule.min_slices} at least"
        return Fault("too_few_slices", told)
    stacked = stack(kept)
    if isinstance(stacked, Fault):
        return stacked
    return _rescale_fault(stacked, opener) or (stacked, copies)


def only_largest(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Reject all accepted series of a study but the one with the most slices, the first of equals.

    More pixels per slice, then the lower series number decide between equals.
    """
    best: dict[tuple[str, str], Verdict] = {}
    for verdict in verdicts:
        study = verdict.series.study
        if verdict.accepted and (study not in best or _size(verdict) > _size(best[study])):
            best[study] = verdict
    kept = []
    for verdict in verdicts:
        chosen = best.get(verdict.series.study)
        if verdict.accepted and chosen is not None and verdict is not chosen:
            told = (
                f"{len(verdict.series.slices)} slices; another series of the study has"
                f" {len(chosen.series.slices)} and ingest.series is 'largest'"
            )
            kept.append(Verdict(verdict.series, Fault("not_largest", told)))
        else:
            kept.append(verdict)
    return kept


def _size(verdict: Verdict) -> tuple[int, int, int]:
    assert verdict.stack is not None
    i, j, k = verdict.stack.grid.shape
    number = verdict.series.slices[0].series_number
    return k, i * j, -(number if number is not None else 1_000_000)


def _mixed(slices: Sequence[Slice]) -> Fault | None:
    """Return a fault where slices differ in direction, matrix or spacing: no part was a scan."""
    first = slices[0]
    if not all(near(piece.orientation, first.orientation, UNIT) for piece in slices):
        directions = len({tuple(np.round(piece.orientation or (), 2)) for piece in slices})
        return Fault(
            "mixed_orientation",
            f"{len(slices)} slices in {directions} directions, too few in each for a stack",
        )
    if len({(s.encoding.rows, s.encoding.columns, s.spacing_mm) for s in slices}) > 1:
        return Fault(
            "uneven_slices",
            f"{len(slices)} slices of several matrices or pixel spacings, too few of each for a"
            " stack",
        )
    return None


def _without_copies(
    slices: Sequence[Slice], opener: Opener
) -> tuple[tuple[Slice, ...] | Fault, int]:
    """Return one slice per position and how many identical copies were left out."""
    kept, twice = [], 0
    for place in positions(slices):
        first, *others = place
        kept.append(first)
        if not others:
            continue
        try:
            planes = [_values([piece], opener)[0] for piece in place]
        except DAMAGE:
            return _UNREADABLE, 0
        same_point = all(near(s.position_mm, first.position_mm, SAME_PLACE_MM) for s in others)
        if same_point and all(np.array_equal(plane, planes[0]) for plane in planes[1:]):
            twice += len(others)
        else:
            return _repeated(slices), 0
    return tuple(kept), twice


def _repeated(slices: Sequence[Slice]) -> Fault:
    places = positions(slices)
    times = sum(len(place) > 1 for place in places)
    return Fault(
        "repeated_positions",
        f"{times} of {len(places)} positions are taken several times with different content, and no"
        " tag tells the scans apart; export them as series of their own",
    )


def _values(slices: Sequence[Slice], opener: Opener) -> list[np.ndarray]:
    planes = stored_pixels(slices, opener)
    return [rescaled(plane, piece) for plane, piece in zip(planes, slices, strict=True)]


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
    if low <= _AIR_HU:
        return None
    return Fault(
        "no_rescale",
        f"no RescaleSlope or RescaleIntercept, and the lowest value, {low:g}, is not that of air in"
        " HU; export the original series",
    )


def _notes(stacked: SliceStack, copies: int, lossy: bool) -> tuple[str, ...]:
    """Return what was odd of an accepted series, and what was done about it."""
    slices = stacked.slices
    scales = {(piece.slope, piece.intercept) for piece in slices}
    acquisitions = {piece.traits.acquisition for piece in slices}
    told = {
        f"{copies} identical copies of slices left out": copies > 0,
        f"gantry tilt {stacked.tilt_deg:.1f} degrees, kept as a sheared grid": stacked.is_tilted,
        f"{len(scales)} rescale slopes or intercepts, each slice's own applied": len(scales) > 1,
        "no rescale values, but the values look like HU": any(map(_lacks_rescale, slices)),
        f"{len(acquisitions)} acquisitions in one even stack": len(acquisitions) > 1,
        "lossily compressed": lossy,
        "its ImageType says DERIVED": slices[0].traits.image_type[:1] == ("DERIVED",),
        "its padding value could be tissue, so it is not taken for padding": any(
            piece.encoding.padding and not padding_applies(piece) for piece in slices
        ),
    }
    return tuple(itertools.compress(told, told.values()))

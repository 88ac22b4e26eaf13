"""Which slices belong together: by series, split further where one series holds several scans."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sacl.dicom.files import Fault
from sacl.dicom.header import near
from sacl.dicom.slices import Identity, Slice
from sacl.dicom.stack import UNIT, plane_fault, positions, stack

_TRAITS = {
    "stack": "stack_id",
    "acquisition": "acquisition",
    "temporal position": "temporal",
    "echo time": "echo_ms",
    "b-value": "b_value",
    "image type": "image_type",
}
"""What may tell apart the scans of one series, by its name, the more usual first."""
MIN_SLICES = 5
"""Fewer slices are no scan."""
_IN_PLANE = 1e-3
"""Relative difference of pixel spacings that makes two scans of one series."""


@dataclass(frozen=True, eq=False)
class Series:
    """Slices of one scan. `part` says what sets it apart from others of its series, or is empty."""

    identity: Identity
    part: str
    slices: tuple[Slice, ...]

    @property
    def study(self) -> tuple[str, str]:
        """Return what identifies the study; private."""
        return self.identity.patient_id, self.identity.study_uid or self.identity.folder


def group(slices: Iterable[Slice]) -> list[Series]:
    """Return the scans that slices belong to, in their order.

    Of one SeriesInstanceUID (where an anonymizer emptied it: of one folder), scouts and slices of
    another matrix, pixel spacing or orientation are set apart. What is left stays one scan where it
    is one even stack, of CT with one acquisition behind the other. Else it is split by the first of
    `_TRAITS` and trigger time that tells slices apart, and so on. No split is made that leaves no
    part of five slices: the whole is judged then, with one reason.
    """
    by_series = _by(lambda piece: piece.identity.scan, slices)
    return [
        Series(members[0].identity, part, tuple(kept))
        for members in by_series.values()
        for part, kept in _parts(members)
    ]


def _parts(members: list[Slice]) -> list[tuple[str, list[Slice]]]:
    sizes = [min(piece.encoding.rows, piece.encoding.columns) for piece in members]
    if min(sizes) < 1 or any(map(plane_fault, members)):
        return [("", members)]
    planes: list[list[Slice]] = []
    for piece in members:
        home = next((plane for plane in planes if _same_plane(plane[0], piece)), [])
        if not home:
            planes.append(home)
        home.append(piece)
    if max(map(len, planes)) < MIN_SLICES <= len(members):
        return [("", members)]
    words = [_plane_words(plane[0]) for plane in planes]
    differ = [len(set(word)) > 1 for word in zip(*words, strict=True)]
    return [
        (_join(*itertools.compress(own, differ), trait), kept)
        for plane, own in zip(planes, words, strict=True)
        for trait, kept in _separate(plane)
    ]


def _same_plane(a: Slice, b: Slice) -> bool:
    """Tell whether two slices have one matrix, spacing and orientation, and both are scans."""
    return (
        (a.encoding.rows, a.encoding.columns) == (b.encoding.rows, b.encoding.columns)
        and is_localizer(a) == is_localizer(b)
        and near(a.spacing_mm, b.spacing_mm, _IN_PLANE * min(a.spacing_mm or (0,)))
        and near(a.orientation, b.orientation, UNIT)
    )


def is_localizer(piece: Slice) -> bool:
    """Tell whether a slice says that it is a scout."""
    return any(word in ("LOCALIZER", "SCOUT", "TOPOGRAM") for word in piece.image_type)


def _separate(members: list[Slice]) -> list[tuple[str, list[Slice]]]:
    """Split slices of one plane by what tells them apart, until each part is one even stack."""
    if len(members) < MIN_SLICES or _is_one_scan(members):
        return [("", members)]
    ways = {name: _by(operator.attrgetter(trait), members) for name, trait in _TRAITS.items()}
    ways["trigger time"] = _by_trigger(members)
    for name, by_value in ways.items():
        if len(by_value) > 1 and max(map(len, by_value.values())) >= MIN_SLICES:
            return [
                (_join(f"{name} {_in_words(value)}", inner), kept)
                for value, part in by_value.items()
                for inner, kept in _separate(part)
            ]
    return [("", members)]


def _by(key: Callable[[Slice], Hashable], slices: Iterable[Slice]) -> dict[Hashable, list[Slice]]:
    groups: dict[Hashable, list[Slice]] = {}
    for piece in slices:
        groups.setdefault(key(piece), []).append(piece)
    return groups


def _by_trigger(members: list[Slice]) -> dict[Hashable, list[Slice]]:
    """Return the frames of a cine by their usual time after the trigger, in ms.

    The heart does not beat evenly. The usual times are the medians over the positions at which no
    frame is missing; a frame belongs to the nearest. Nothing is told apart where a slice says no
    time, or two of one position belong to the same.
    """
    places = positions(members)
    count = max(map(len, places))
    whole = [sorted(s.trigger_ms or 0.0 for s in p) for p in places if len(p) == count]
    usual = np.median(whole, axis=0)
    by_time: dict[Hashable, list[Slice]] = {}
    for place in places:
        times = [piece.trigger_ms for piece in place]
        if any(time is None for time in times):
            return {}
        nearest = np.abs(np.subtract.outer(np.array(times, float), usual)).argmin(axis=1)
        if len(set(nearest.tolist())) < len(place):
            return {}
        for n, piece in zip(nearest, place, strict=True):
            by_time.setdefault(round(float(usual[n])), []).append(piece)
    return by_time


def _is_one_scan(members: Sequence[Slice]) -> bool:
    stacked = stack(members)
    if isinstance(stacked, Fault):
        return False
    # Two CT phases may lie between each other; MR interleaves the slices of one scan.
    acquisitions = [piece.acquisition for piece in stacked.slices]
    changes = sum(a != b for a, b in itertools.pairwise(acquisitions))
    return stacked.slices[0].modality == "MR" or changes == len(set(acquisitions)) - 1


def _plane_words(piece: Slice) -> tuple[str, ...]:
    """Return what may set a plane apart from others; named where it differs between them."""
    spacing = " x ".join(f"{mm:.4g}" for mm in piece.spacing_mm or ())
    cosines = ",".join(f"{cosine:.2f}" for cosine in piece.orientation or ())
    cosines = cosines.replace("-0.00", "0.00")
    return (
        "localizer" if is_localizer(piece) else "scan",
        f"matrix {piece.encoding.columns} x {piece.encoding.rows}",
        f"pixels {spacing} mm",
        f"orientation {cosines}",
    )


def _in_words(value: Hashable) -> str:
    if value in (None, "", ()):
        return "unnamed"
    return "/".join(value) if isinstance(value, tuple) else f"{value}"


def _join(*words: str) -> str:
    return "; ".join(word for word in words if word)

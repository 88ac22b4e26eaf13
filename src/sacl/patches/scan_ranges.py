"""Ranges of the training scans (intensities, sizes), and whether a new scan is within them.

A CT segmenter gives label maps of cardiac MR too, wrong ones. Intensities, voxels and field of view
far outside of what it was trained on are a doubt that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import numpy as np

from sacl.types import Volume

_PERCENTILES = (1.0, 99.0)
_STRIDE = 4
_LENGTHS = {"pixels": "pixel_mm", "slices": "slice_mm", "field of view": "field_of_view_mm"}
_FACTOR = 2.0
"""Lengths outside of the training's by more than this factor are a doubt."""
_CT_SLACK_HU = 400.0
"""HU outside of the training's by more than this are a doubt."""
_AIR_HU = -500.0
"""A scan with a percent of its voxels below this is a CT: no MR has such intensities."""


@dataclass(frozen=True)
class ScanMeasures:
    """What is compared of a scan: intensities (1st and 99th percentile) and lengths in mm."""

    low: float
    high: float
    pixel_mm: float
    slice_mm: float
    field_of_view_mm: float


@dataclass(frozen=True)
class ScanRanges:
    """Smallest and largest of everything that is compared, over the scans of a training."""

    smallest: ScanMeasures
    largest: ScanMeasures


def measures_of(volume: Volume) -> ScanMeasures:
    """Return what is compared of a scan, from every 4th voxel along each axis."""
    thinned = np.asarray(volume.voxels[::_STRIDE, ::_STRIDE, ::_STRIDE])
    low, high = np.percentile(thinned, _PERCENTILES)
    i, j, k = volume.grid.spacing_mm
    shape = volume.grid.shape
    return ScanMeasures(float(low), float(high), max(i, j), k, max(shape[0] * i, shape[1] * j))


def ranges_of(measures: Sequence[ScanMeasures]) -> ScanRanges | None:
    """Return the ranges over several scans, None where there is none."""
    if not measures:
        return None
    columns = list(zip(*map(astuple, measures), strict=True))
    return ScanRanges(ScanMeasures(*map(min, columns)), ScanMeasures(*map(max, columns)))


def doubts_about(
    scan: ScanMeasures, trained: ScanRanges, modality: Literal["ct", "mr"]
) -> list[str]:
    """Return in words in what a scan is unlike all scans of a training; empty where it is like."""
    small, large = trained.smallest, trained.largest
    doubts = []
    if modality == "ct" and (
        not small.low - _CT_SLACK_HU <= scan.low <= large.low + _CT_SLACK_HU
        or not small.high - _CT_SLACK_HU <= scan.high <= large.high + _CT_SLACK_HU
    ):
        doubts.append(
            f"98 % of its intensities lie in {scan.low:.0f} to {scan.high:.0f}, those of the CT it"
            f" was trained on in {small.low:.0f} to {large.high:.0f} HU; is it a CT?"
        )
    if modality == "mr" and scan.low < _AIR_HU < small.low:
        doubts.append(f"intensities down to {scan.low:.0f}: it looks like a CT, not like an MR")
    for what, name in _LENGTHS.items():
        value, least, most = (getattr(measures, name) for measures in (scan, small, large))
        if not least / _FACTOR <= value <= most * _FACTOR:
            ends = " to ".join(dict.fromkeys((f"{least:.3g}", f"{most:.3g}")))
            doubts.append(f"{what} of {value:.3g} mm, trained on {ends} mm")
    return doubts

"""Check a cohort's images: how they lie in space, and whether their intensities are alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from sacl.check.facts import Geometry, Intensities, ScanFacts, looks_like_ct
from sacl.check.findings import Finding
from sacl.cohort.merging import AIR_HU
from sacl.scores.summary import FEWEST, robust_z

_LIMIT = 6.0
_SPACING_MM = (0.05, 25.0)
_FIELD_MM = (10.0, 2500.0)
"""From a crop around the smallest organ to a whole body."""
_UNLIKE = 4.0
_FEWEST_SLICES = 4
_OBLIQUE_DEG = 0.5
_SHEAR = 1e-3
_SIZES_DIFFER = 1.5
_THICK = 1.7
"""Spacing along x or y, in units of both others, from which slices are sagittal or coronal."""
_LEAST_SOFT_SHARE = 0.02
_UNSHIFTED_SHARE = 0.1
"""No scan is to this share of bone as dense as 1000 HU: it is soft tissue without its intercept."""
_FAT_HU = -50.0
"""Every CT of a body has fat, which lies lower."""
_FAR = 20.0
"""An extreme lies this many times the width of the central 99 % beyond it."""
_SCALES = 10.0
_HU_FLOOR, LOG_FLOOR = 12.0, 0.08
_FEW_SHARE = 0.1
"""Where more scans than this share are outliers the cohort is of two kinds: one note."""


def robust_outliers(values: Mapping[str, float], floor: float) -> dict[str, float]:
    """Return the robust z-score of the values that lie more than 6 from the median.

    A cohort is searched for faults, not for tails: 3.5 is usual. NaN values are passed over.
    """
    scores = robust_z(np.array(list(values.values()), dtype=np.float64), floor)
    return {case: float(z) for case, z in zip(values, scores, strict=True) if abs(z) > _LIMIT}


def geometry_findings(scans: Sequence[ScanFacts]) -> Iterator[Finding]:
    """Yield what is the matter with the grids of a cohort."""
    placed = {scan.case_id: scan.geometry for scan in scans if scan.geometry}
    # In a cohort resampled to 1 mm, voxels of 1 mm at the origin are nothing strange.
    resampled = len(placed) >= FEWEST and all(map(_is_one_mm, placed.values()))
    for case, geometry in placed.items():
        yield from _of_scan(case, geometry)
        if any(geometry.origin_mm):
            continue
        if _is_one_mm(geometry) and geometry.tilt_deg == 0 and not resampled:
            yield Finding("lost-header", case, "spacing 1 x 1 x 1 mm and origin 0, 0, 0")
        else:
            yield Finding("zero-origin", case, "origin 0, 0, 0")
    for scan in scans:
        doubt = scan.reference.contradiction if scan.reference else ""
        if doubt and not (scan.geometry and scan.geometry.contradiction == doubt):
            yield Finding("contradictory-header", scan.case_id, f"label map: {doubt}")
    if len(placed) >= FEWEST:
        yield from _of_all(placed)


def _of_scan(case: str, geometry: Geometry) -> Iterator[Finding]:
    yield from _size(case, geometry)
    if geometry.contradiction:
        yield Finding("contradictory-header", case, geometry.contradiction)
    if min(geometry.shape) < _FEWEST_SLICES:
        message = f"{_words(geometry.shape)} voxels, expected {_FEWEST_SLICES} along every axis"
        yield Finding("few-slices", case, message)
    if geometry.shear > _SHEAR:
        tilt = np.degrees(np.arcsin(min(1.0, geometry.shear)))
        yield Finding("sheared", case, f"two axes are {tilt:.2g} degrees off the right angle")
    elif geometry.tilt_deg > _OBLIQUE_DEG:
        yield Finding("oblique", case, f"turned by {geometry.tilt_deg:.1f} degrees")
    x, y, z = geometry.spacing_mm
    if max(x, y) > _THICK * max(z, min(x, y)):
        plane = "sagittal" if x > y else "coronal"
        message = f"spacing {_words(geometry.spacing_mm)} mm: {plane} slices"
        yield Finding("not-axial", case, message)


def _size(case: str, geometry: Geometry) -> Iterator[Finding]:
    """Yield voxels and fields of view of an impossible size, as a wrong unit gives."""
    spacing, field = geometry.spacing_mm, geometry.field_of_view_mm
    got = f"voxels of {_words(spacing)} mm, {_words(geometry.shape)} of them"
    if geometry.unit_mm != 1.0:
        unit = "meters" if geometry.unit_mm > 1 else "micrometers"
        message = f"the header's unit is {unit} with a spacing of {_words(spacing)}, expected mm"
    elif min(spacing) < _SPACING_MM[0] or max(spacing) > _SPACING_MM[1]:
        message = f"{got}; expected {_SPACING_MM[0]:g} to {_SPACING_MM[1]:g} mm"
    elif min(field[:2]) < _FIELD_MM[0] or max(field) > _FIELD_MM[1]:
        expected = f"expected {_FIELD_MM[0]:g} to {_FIELD_MM[1]:g}"
        message = f"{got}: a field of view of {_words(field)} mm, {expected}"
    else:
        return
    yield Finding("implausible-size", case, message)


def _of_all(placed: dict[str, Geometry]) -> Iterator[Finding]:
    """Yield spacings unlike all others, or alike in all scans where they hardly can be."""
    spacings = np.array([geometry.spacing_mm for geometry in placed.values()])
    usual = np.median(spacings, axis=0)
    for case, spacing in zip(placed, spacings, strict=True):
        ratio = spacing / usual
        if max(ratio.max(), 1 / ratio.min()) > _UNLIKE:
            message = f"spacing {_words(spacing)} mm, the cohort's median is {_words(usual)} mm"
            yield Finding("spacing-outlier", case, message)
    slices = np.array([geometry.shape[:2] for geometry in placed.values()])
    if np.ptp(spacings, axis=0).max() > 1e-4 * spacings.min():
        return
    if all(map(_is_one_mm, placed.values())):
        yield Finding("unit-spacing", "", f"all {len(placed)} scans have 1 x 1 x 1 mm")
    elif (slices.max(axis=0) / slices.min(axis=0)).max() > _SIZES_DIFFER:
        message = (
            f"all {len(placed)} scans have {_words(spacings[0])} mm, though their slices measure"
            f" from {slices.min()} to {slices.max()} voxels: resampled, or not measured"
        )
        yield Finding("nominal-spacing", "", message)


def _is_one_mm(geometry: Geometry) -> bool:
    return bool(np.allclose(geometry.spacing_mm, 1.0, atol=1e-5))


def _words(numbers: Iterable[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


# -- intensities -----------------------------------------------------------------------------------


def intensity_findings(
    scans: Sequence[ScanFacts], modality: Literal["ct", "mr"]
) -> Iterator[Finding]:
    """Yield what is the matter with the images of a cohort of one modality."""
    usable = {}
    for scan in scans:
        if scan.image and (fault := _fault_of(scan, scan.image, modality)):
            yield fault
        elif scan.image:
            usable[scan.case_id] = scan.image
    for case, image in usable.items():
        above, below = image.high - image.p995, image.p005 - image.low
        if max(above, below) / (image.p995 - image.p005) > _FAR:
            end = image.high if above > below else image.low
            usual = f"{image.p005:g} to {image.p995:g}"
            message = f"{end:g}, where 99 % of the voxels lie within {usual}"
            yield Finding("extreme-values", case, message)
    yield from _other_intensities(usable, modality)


def _fault_of(scan: ScanFacts, image: Intensities, modality: Literal["ct", "mr"]) -> Finding | None:
    """Return why a scan's intensities cannot be compared with the others', None where they can."""
    if image.low == image.high:
        return Finding("constant-image", scan.case_id, f"every voxel is {image.low:g}")
    if scan.modality is not None and scan.modality != modality:
        message = f"the scan is {scan.modality.upper()}, the cohort {modality.upper()}"
        return Finding("other-modality", scan.case_id, message)
    if modality == "mr" and looks_like_ct(image):
        message = f"lowest intensity {image.low:g}, as air in CT; MR has none below {AIR_HU:g}"
        return Finding("ct-in-mr", scan.case_id, message)
    if modality == "ct" and (why := _not_hu(image)):
        return Finding("not-hu", scan.case_id, why)
    if image.p005 == image.p995:
        span = f"the range is {image.low:g} to {image.high:g}"
        message = f"99 % of the voxels are {image.median:g}, {span}"
        return Finding("nearly-constant", scan.case_id, message)
    return None


def _not_hu(image: Intensities) -> str | None:
    """Return by what one sees that a CT is not in HU."""
    spans = f"intensities {image.low:g} to {image.high:g}"
    if image.unshifted_share > _UNSHIFTED_SHARE:
        return (
            f"{spans} with {image.unshifted_share:.0%} of the voxels around 1000: the rescale"
            " intercept (-1024) is missing; expected air near -1000"
        )
    if image.low > _FAT_HU:
        return f"{spans}, expected fat near -100 and air near -1000: MR, or scaled already"
    if image.soft_share < _LEAST_SOFT_SHARE:
        return (
            f"{spans}, {image.soft_share:.1%} of the voxels within -150 to 250 HU, expected"
            f" {_LEAST_SOFT_SHARE:.0%} of soft tissue at least"
        )
    return None


def _other_intensities(
    images: Mapping[str, Intensities], modality: Literal["ct", "mr"]
) -> Iterator[Finding]:
    """Compare soft tissue (CT) or the logarithm of the upper end (MR) with the other scans'."""
    ct = modality == "ct"
    values = {
        case: image.soft_median if ct else math.log10(image.p995) if image.p995 > 0 else math.nan
        for case, image in images.items()
    }
    outliers = robust_outliers(values, _HU_FLOOR if ct else LOG_FLOOR)
    if len(outliers) <= max(1.0, _FEW_SHARE * len(values)):
        center = float(np.nanmedian(list(values.values()))) if values else math.nan
        for case, z in outliers.items():
            got = f"{values[case]:.0f} HU" if ct else f"{images[case].p995:g}"
            usual = f"{center:.0f} HU" if ct else f"{10**center:.4g}"
            what = "median of the soft tissue" if ct else "99.5th percentile"
            message = f"{what} {got}, the cohort's {usual} (robust z {z:+.1f})"
            yield Finding("intensity-outlier", case, message)
    tops = [image.p995 for image in images.values() if image.p995 > 0]
    if not ct and tops and max(tops) > _SCALES * min(tops):
        message = f"99.5th percentiles from {min(tops):.4g} to {max(tops):.4g}"
        yield Finding("intensity-scale", "", message)

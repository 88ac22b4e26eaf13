"""Check the intensities of a cohort's images: of the right kind, and alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from sacl.check.findings import Finding
from sacl.check.outliers import robust_outliers
from sacl.check.scan_facts import Intensities, ScanFacts

_AIR_HU = -500.0
"""No MR goes below: its intensities are magnitudes, or normalized to a few units."""
_LEAST_SOFT_SHARE = 0.02
_UNSHIFTED_SHARE = 0.1
"""No scan is to this share of bone as dense as 1000 HU: it is soft tissue without its intercept."""
_FAT_HU = -50.0
"""Every CT of a body has fat, which lies lower."""
_FAR = 20.0
"""An extreme lies this many times the width of the central 99 % beyond it."""
_SCALES = 10.0
_HU_FLOOR, _LOG_FLOOR = 12.0, 0.08
_FEW_SHARE = 0.1
"""Where more scans than this share are outliers the cohort is of two kinds: one note."""


def looks_like_ct(image: Intensities) -> bool:
    """Tell whether an image holds intensities as low as air has in HU."""
    return image.low <= _AIR_HU


def intensity_findings(
    scans: Sequence[ScanFacts], modality: Literal["ct", "mr"]
) -> Iterator[Finding]:
    """Yield what is the matter with the images of a cohort of one modality."""
    usable = []
    for scan in scans:
        if scan.image is None:
            continue
        found = _of_scan(scan, scan.image, modality)
        if found is None:
            usable.append(scan)
        else:
            yield found
    yield from _extremes(usable)
    yield from _unlike_the_others(usable, modality)


def _of_scan(scan: ScanFacts, image: Intensities, modality: Literal["ct", "mr"]) -> Finding | None:
    """Return why a scan's intensities cannot be compared with the others', None where they can."""
    if image.low == image.high:
        return Finding("constant-image", scan.case_id, f"every voxel is {image.low:g}")
    if scan.modality is not None and scan.modality != modality:
        message = f"the scan is {scan.modality.upper()}, the cohort {modality.upper()}"
        return Finding("other-modality", scan.case_id, message)
    if modality == "mr" and looks_like_ct(image):
        message = f"lowest intensity {image.low:g}, as air in CT; MR has none below {_AIR_HU:g}"
        return Finding("ct-in-mr", scan.case_id, message)
    if modality == "ct" and (why := _not_hu(image)):
        return Finding("not-hu", scan.case_id, why)
    if image.p005 == image.p995:
        message = f"99 % of the voxels are {image.median:g}, of {image.low:g} to {image.high:g}"
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


def _extremes(scans: Sequence[ScanFacts]) -> Iterator[Finding]:
    for scan in scans:
        image = scan.image
        if image is None:
            continue
        width = image.p995 - image.p005
        above, below = (image.high - image.p995) / width, (image.p005 - image.low) / width
        if max(above, below) > _FAR:
            end = image.high if above > below else image.low
            yield Finding(
                "extreme-values",
                scan.case_id,
                f"{end:g}, where 99 % of the voxels lie within {image.p005:g} to {image.p995:g}",
            )


def _unlike_the_others(
    scans: Sequence[ScanFacts], modality: Literal["ct", "mr"]
) -> Iterator[Finding]:
    """Compare soft tissue (CT) or the upper end (MR) with the other scans'.

    MR has no unit: its scans are compared by the logarithm.
    """
    images = {scan.case_id: scan.image for scan in scans if scan.image}
    ct = modality == "ct"
    values = {
        case: image.soft_median if ct else math.log10(image.p995) if image.p995 > 0 else math.nan
        for case, image in images.items()
    }
    outliers = robust_outliers(values, _HU_FLOOR if ct else _LOG_FLOOR)
    if len(outliers) <= max(1.0, _FEW_SHARE * len(values)):
        center = float(np.nanmedian(list(values.values()))) if values else math.nan
        for case, z in outliers.items():
            got = f"{values[case]:.0f} HU" if ct else f"{images[case].p995:g}"
            usual = f"{center:.0f} HU" if ct else f"{10**center:.4g}"
            what = "median of the soft tissue" if ct else "99.5th percentile"
            yield Finding(
                "intensity-outlier", case, f"{what} {got}, the cohort's {usual} (robust z {z:+.1f})"
            )
    tops = [image.p995 for image in images.values() if image.p995 > 0]
    if not ct and tops and max(tops) > _SCALES * min(tops):
        message = f"99.5th percentiles from {min(tops):.4g} to {max(tops):.4g}"
        yield Finding("intensity-scale", "", message)

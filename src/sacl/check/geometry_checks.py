"""Check how a cohort's scans lie in space: spacing, field of view, axes and origin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sacl.check.findings import Finding
from sacl.check.outliers import FEWEST
from sacl.check.scan_facts import Geometry, ScanFacts

_SPACING_MM = (0.05, 25.0)
_FIELD_MM = (10.0, 2500.0)
"""From a crop around the smallest organ to a whole body."""
_UNLIKE = 4.0
_FEWEST_SLICES = 4
_OBLIQUE_DEG = 0.5
_SHEAR = 1e-3
_SIZES_DIFFER = 1.5
_THICK = 1.7
"""Spacing along x or y, in units of that along z, from which slices are sagittal or coronal."""


def geometry_findings(scans: Sequence[ScanFacts]) -> Iterator[Finding]:
    """Yield what is the matter with the grids of a cohort."""
    placed = {scan.case_id: scan.geometry for scan in scans if scan.geometry}
    # In a cohort resampled to 1 mm, voxels of 1 mm at the origin are nothing strange.
    resampled = len(placed) >= FEWEST and all(map(_is_one_mm, placed.values()))
    for case, geometry in placed.items():
        yield from _of_scan(case, geometry)
        yield from _origin(case, geometry, resampled)
    yield from _unlike_the_others(placed)
    yield from _of_all(placed)


def _of_scan(case: str, geometry: Geometry) -> Iterator[Finding]:
    yield from _size(case, geometry)
    if min(geometry.shape) < _FEWEST_SLICES:
        message = f"{_words(geometry.shape)} voxels, expected {_FEWEST_SLICES} along every axis"
        yield Finding("few-slices", case, message)
    if geometry.shear > _SHEAR:
        tilt = np.degrees(np.arcsin(min(1.0, geometry.shear)))
        yield Finding("sheared", case, f"two axes are {tilt:.2g} degrees off the right angle")
    elif geometry.tilt_deg > _OBLIQUE_DEG:
        yield Finding("oblique", case, f"turned by {geometry.tilt_deg:.1f} degrees")
    x, y, z = geometry.spacing_mm
    if max(x, y) > _THICK * z:
        plane = "sagittal" if x > y else "coronal"
        message = f"spacing {_words(geometry.spacing_mm)} mm: {plane} slices"
        yield Finding("not-axial", case, message)


def _origin(case: str, geometry: Geometry, resampled: bool) -> Iterator[Finding]:
    if any(geometry.origin_mm):
        return
    if _is_one_mm(geometry) and geometry.tilt_deg == 0 and not resampled:
        yield Finding("lost-header", case, "spacing 1 x 1 x 1 mm and origin 0, 0, 0")
    else:
        yield Finding("zero-origin", case, "origin 0, 0, 0")


def _size(case: str, geometry: Geometry) -> Iterator[Finding]:
    """Tell voxels and fields of view of an impossible size, as a wrong unit gives."""
    spacing, field = geometry.spacing_mm, geometry.field_of_view_mm
    got = f"voxels of {_words(spacing)} mm, {_words(geometry.shape)} of them"
    if geometry.unit_mm != 1.0:
        unit = "meters" if geometry.unit_mm > 1 else "micrometers"
        message = f"the header's unit is {unit} with a spacing of {_words(spacing)}, expected mm"
        yield Finding("implausible-size", case, message)
    elif min(spacing) < _SPACING_MM[0] or max(spacing) > _SPACING_MM[1]:
        message = f"{got}; expected {_SPACING_MM[0]:g} to {_SPACING_MM[1]:g} mm"
        yield Finding("implausible-size", case, message)
    elif min(field[:2]) < _FIELD_MM[0] or max(field) > _FIELD_MM[1]:
        message = f"{got}: a field of view of {_words(field)} mm, expected"
        message += f" {_FIELD_MM[0]:g} to {_FIELD_MM[1]:g}"
        yield Finding("implausible-size", case, message)


def _unlike_the_others(placed: dict[str, Geometry]) -> Iterator[Finding]:
    if len(placed) < FEWEST:
        return
    usual = np.median([geometry.spacing_mm for geometry in placed.values()], axis=0)
    for case, geometry in placed.items():
        ratio = np.asarray(geometry.spacing_mm) / usual
        if max(ratio.max(), 1 / ratio.min()) > _UNLIKE:
            yield Finding(
                "spacing-outlier",
                case,
                f"spacing {_words(geometry.spacing_mm)} mm, the cohort's median is"
                f" {_words(usual.tolist())} mm",
            )


def _of_all(placed: dict[str, Geometry]) -> Iterator[Finding]:
    """Tell spacings that are alike in all scans where they hardly can be."""
    geometries = list(placed.values())
    if len(geometries) < FEWEST:
        return
    shapes = np.array([geometry.shape for geometry in geometries])
    spacings = np.array([geometry.spacing_mm for geometry in geometries])
    ratio = shapes.max(axis=0) / shapes.min(axis=0)
    if np.ptp(spacings, axis=0).max() > 1e-4 * spacings.min():
        return
    if all(map(_is_one_mm, geometries)):
        yield Finding("unit-spacing", "", f"all {len(placed)} scans have 1 x 1 x 1 mm")
    elif ratio[:2].max() > _SIZES_DIFFER:
        low, high = shapes[:, :2].min(), shapes[:, :2].max()
        yield Finding(
            "nominal-spacing",
            "",
            f"all {len(placed)} scans have {_words(geometries[0].spacing_mm)} mm, though their"
            f" slices measure from {low} to {high} voxels: resampled, or a spacing nobody measured",
        )


def _is_one_mm(geometry: Geometry) -> bool:
    return bool(np.allclose(geometry.spacing_mm, 1.0, atol=1e-5))


def _words(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)

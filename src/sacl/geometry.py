"""Orientation and agreement of grids: canonical (closest RAS+) and back, exactly; resampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from sacl.errors import DataError
from sacl.types import Grid

Orientation = tuple[tuple[int, bool], ...]
"""For x, y and z: the voxel axis that runs closest to it, and whether it runs against it."""

_TIE = 1e-5
"""Direction cosines that differ by less are taken as equal; float32 rounds them to 6e-8."""
_HALFWAY = 1e-3
"""In voxels: a center this close to two voxels' border lies on it, as float32 affines round."""
_LEAST_SLICES = 24
_REMEDY = "resample the label map onto the image's grid"


def orientation_of(grid: Grid) -> Orientation:
    """Return which voxel axis runs closest to x, y and z, and whether it has to be flipped.

    The assignment with the largest sum of absolute direction cosines is taken, also of an oblique
    or sheared grid. In a tie, as at 45 degrees, the axes stay as they are: so a canonical grid
    stays canonical when a file rounds it to float32.
    """
    cosine = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)

    def closeness(axes: tuple[int, ...]) -> float:
        total = sum(abs(float(cosine[world, axis])) for world, axis in enumerate(axes))
        return total + _TIE if axes == (0, 1, 2) else total

    best = max(itertools.permutations(range(3)), key=closeness)
    return tuple((axis, bool(cosine[world, axis] < -_TIE)) for world, axis in enumerate(best))


def to_canonical(voxels: Shaped[np.ndarray, "i j k"], grid: Grid) -> tuple[np.ndarray, Grid]:
    """Permute and flip axes so that i, j, k run closest to x, y, z; the result is a view."""
    orientation = orientation_of(grid)
    axes = [axis for axis, _ in orientation]
    shape = tuple(grid.shape[axis] for axis in axes)
    affine = np.eye(4)
    affine[:, :3] = grid.affine[:, axes]
    affine[:3, 3] = grid.affine[:3, 3]
    canonical = voxels.transpose(axes)
    for axis, (_, flip) in enumerate(orientation):
        if flip:
            canonical = np.flip(canonical, axis)
            affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
            affine[:3, axis] *= -1
    return canonical, Grid((shape[0], shape[1], shape[2]), affine)


def canonical_grid(grid: Grid) -> Grid:
    """Return the grid on which `to_canonical` lays the voxels."""
    return to_canonical(np.broadcast_to(np.False_, grid.shape), grid)[1]


def to_native(voxels: Shaped[np.ndarray, "i j k"], native: Grid) -> np.ndarray:
    """Undo `to_canonical`: return canonical voxels in the native grid's own order, as a view."""
    orientation = orientation_of(native)
    flips = [axis for axis, (_, flip) in enumerate(orientation) if flip]
    inverse = np.argsort([axis for axis, _ in orientation])
    return np.asarray(np.flip(voxels, tuple(flips)).transpose(inverse))


def same_grid(a: Grid, b: Grid, tolerance_mm: float = 1e-2) -> bool:
    """Tell whether no corner of the two grids lies further apart than the tolerance."""
    if a.shape != b.shape:
        return False
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in a.shape])))
    corners = np.c_[corners, np.ones(8)]
    return bool(np.abs(corners @ (a.affine - b.affine).T).max() <= tolerance_mm)


def describe(grid: Grid) -> str:
    """Return a grid in words: voxels, spacing and origin."""
    shape = " x ".join(str(n) for n in grid.shape)
    spacing = " x ".join(f"{s:.4g}" for s in grid.spacing_mm)
    origin = ", ".join(f"{o:.5g}" for o in grid.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm at ({origin})"


def difference(a: Grid, b: Grid) -> str:
    """Return in words how two grids differ: shape, spacing, origin, directions, far corner."""
    cosine_a, cosine_b = (
        g.affine[:3, :3] / np.linalg.norm(g.affine[:3, :3], axis=0) for g in (a, b)
    )
    between = np.degrees(np.arccos(np.clip((cosine_a * cosine_b).sum(axis=0), -1.0, 1.0)))
    last_a, last_b = (g.affine @ [*(n - 1 for n in g.shape), 1] for g in (a, b))
    words = ["other shape"] if a.shape != b.shape else []
    words += ["other spacing"] if not np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-4) else []
    words.append(f"first voxels {np.linalg.norm((a.affine - b.affine)[:3, 3]):.4g} mm apart")
    words.append(f"last voxels {np.linalg.norm(last_a - last_b):.4g} mm apart")
    words.append(f"axes up to {round(float(between.max()), 3):g} degrees apart")
    return ", ".join(words)


def require_same_grid(image: Grid, label: Grid, where: str, remedy: str = _REMEDY) -> None:
    """Refuse a label map that is not on its image's grid; both, and how they differ, are told."""
    if not same_grid(image, label):
        raise DataError(
            f"{where}: image and label map lie on different grids, {describe(image)} against"
            f" {describe(label)} ({difference(image, label)}); {remedy}"
        )


def resample_nearest(voxels: Shaped[np.ndarray, "i j k"], source: Grid, target: Grid) -> np.ndarray:
    """Return label values at the centers of the target's voxels, by nearest neighbor, 0 outside.

    A source voxel owns the half-open cell around its center: a point halfway between two voxels
    takes the one further to the right, front or head, however the source is stored. So the values
    are exact where the grids share their centers. On the same grid the result is `voxels` itself.
    """
    if same_grid(source, target):
        return voxels
    canonical, grid = to_canonical(voxels, source)
    to_source = (np.linalg.inv(grid.affine) @ target.affine)[:3]
    i, j = np.ogrid[: target.shape[0], : target.shape[1]]
    moved = np.zeros(target.shape, voxels.dtype, order="F")
    for k in range(target.shape[2]):
        index = []
        inside = np.ones(target.shape[:2], np.bool_)
        for row, count in zip(to_source, grid.shape, strict=True):
            center = row[0] * i + row[1] * j + (row[2] * k + row[3])
            nearest = np.floor(center + (0.5 + _HALFWAY)).astype(np.int64)
            inside &= (nearest >= 0) & (nearest < count)
            index.append(nearest)
        moved[:, :, k][inside] = canonical[tuple(axis[inside] for axis in index)]
    return moved


def repaired(
    voxels: Shaped[np.ndarray, "i j k"], own: Grid, image: Grid, where: str
) -> tuple[np.ndarray, str]:
    """Resample a label map onto its image's grid, where it has to lie, and say what that did."""
    moved = resample_nearest(voxels, own, image)
    before_ml = np.count_nonzero(voxels) * own.voxel_ml
    after_ml = np.count_nonzero(moved) * image.voxel_ml
    if before_ml and not after_ml:
        raise DataError(
            f"{where}: the label map lies outside of the image ({difference(image, own)}); these"
            " two do not belong together"
        )
    return moved, f"{difference(image, own)}; {before_ml:.4g} ml became {after_ml:.4g} ml"


def volume_grid(
    spacing_mm: Sequence[float], field_of_view_mm: Sequence[float], large: bool
) -> tuple[tuple[float, float, float], tuple[int, int, int]]:
    """Return the voxel spacing and the crop of a network on volumes of such scans, along x, y, z.

    The wider side of a slice takes 96 voxels at most and a crop 48 x 48 x 32, on a `large` machine
    128 and 64 x 64 x 32. Slices are merged to voxels as thick as wide, but to no fewer than 24.
    """
    cells, most = (128, (64, 64, 32)) if large else (96, (48, 48, 32))
    in_plane = round(max(min(spacing_mm[:2]), max(field_of_view_mm[:2]) / cells), 1)
    length_mm = field_of_view_mm[2]
    along = round(max(spacing_mm[2], min(in_plane, length_mm / _LEAST_SLICES)), 1)
    fits = zip(field_of_view_mm, (in_plane, in_plane, along), most, strict=True)
    i, j, k = (min(limit, 8 * math.ceil(mm / voxel / 8)) for mm, voxel, limit in fits)
    return (in_plane, in_plane, along), (i, j, k)

"""Bring a scan onto the coarse network's grid, and class probabilities back onto the scan's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, Integer, Shaped, UInt
from torch import Tensor

from sacl.files.arrays import label_boxes
from sacl.patches.query import triangle
from sacl.patches.window import normalize
from sacl.types import Grid

_SLAB_VOXELS = 4_000_000

Part = tuple[slice, ...]
"""A box of a scan, along i, j and k."""


@dataclass(frozen=True, eq=False)
class CoarseGrid:
    """Where the coarse voxels of a scan lie: nothing is rotated, so that the axes are separate.

    `to_coarse` and `to_scan` are each axis's weights of resampling, `[out, in]`.
    """

    spacing_mm: tuple[float, float, float]
    to_coarse: tuple[Tensor, ...]
    to_scan: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of coarse voxels along i, j and k."""
        return tuple(len(weights) for weights in self.to_coarse)

    @property
    def scan_shape(self) -> tuple[int, ...]:
        """Number of the scan's voxels along i, j and k."""
        return tuple(len(weights) for weights in self.to_scan)


def coarse_grid(
    grid: Grid, spacing_mm: tuple[float, float, float], in_plane_size: int | None = None
) -> CoarseGrid:
    """Plan the coarse grid of a scan.

    With `in_plane_size`, the smallest centered square in mm that holds an axial slice is resampled
    to that many pixels, and k stays as it is. Otherwise the voxels become `spacing_mm`, centered,
    as many as cover the scan.
    """
    if in_plane_size is not None:
        side_mm = max(n * s for n, s in zip(grid.shape[:2], grid.spacing_mm, strict=False))
        pixel_mm = side_mm / in_plane_size
        spacing_mm = (pixel_mm, pixel_mm, grid.spacing_mm[2])
        sizes = [in_plane_size, in_plane_size, grid.shape[2]]
    else:
        sizes = [
            max(1, math.ceil(n * s / target - 1e-3))
            for n, s, target in zip(grid.shape, grid.spacing_mm, spacing_mm, strict=True)
        ]
    to_coarse, to_scan = [], []
    for n, m, target, s in zip(grid.shape, sizes, spacing_mm, grid.spacing_mm, strict=True):
        step = target / s
        start = (n - 1) / 2 - step * (m - 1) / 2
        to_coarse.append(linear_weights(m, n, start, step))
        to_scan.append(linear_weights(n, m, -start / step, 1 / step))
    return CoarseGrid(spacing_mm, tuple(to_coarse), tuple(to_scan))


def linear_weights(count: int, size: int, start: float, step: float) -> Float[Tensor, "count size"]:
    """Return the matrix of linear resampling along one axis.

    Output m lies at `start + m * step` in voxels of the input. The triangle is as wide as the
    larger of step and voxel (`query.triangle`); weights sum to 1, and to 0 for an output outside
    the input.
    """
    position = start + step * np.arange(count)
    weights = triangle(position, 0, size - 1, step)
    inside = (position >= -0.5 - 1e-6) & (position <= size - 0.5 + 1e-6)
    weights *= inside[:, None] / weights.sum(axis=1, keepdims=True).clip(min=1e-12)
    return torch.from_numpy(weights.astype(np.float32))


def image_to_coarse(
    voxels: Shaped[np.ndarray, "i j k"],
    window: tuple[float, float],
    grid: CoarseGrid,
    device: torch.device,
) -> Float[Tensor, "a b c"]:
    """Return the windowed image in [0, 1] on the coarse grid; 0 outside the scan."""
    whole = tuple(slice(0, n) for n in grid.scan_shape)
    return _reduce(lambda part: normalize(voxels[part], window), whole, grid, device)


def labels_to_coarse(
    voxels: Integer[np.ndarray, "i j k"], labels: int, grid: CoarseGrid, device: torch.device
) -> Int16[Tensor, "a b c"]:
    """Return on the coarse grid the label with the largest coverage of each voxel."""
    winner = torch.zeros(grid.shape, dtype=torch.int16)
    largest = torch.zeros(grid.shape)
    background = torch.ones(grid.shape)
    for label, box in enumerate(label_boxes(voxels, labels), start=1):
        if box is None:
            continue

        def mask(part: Part, label: int = label) -> Float[np.ndarray, "_i _j _slab"]:
            return (voxels[part] == label).astype(np.float32)

        coverage = _reduce(mask, box, grid, device).cpu()
        background -= coverage
        winner[coverage > largest] = label
        largest = torch.maximum(coverage, largest)
    winner[background > largest] = 0
    return winner


def _reduce(
    read: Callable[[Part], Float[np.ndarray, "_i _j _slab"]],
    box: Part,
    grid: CoarseGrid,
    device: torch.device,
) -> Float[Tensor, "a b c"]:
    """Return on the coarse grid what is 0 outside of a box of the scan."""
    along_i, along_j, along_k = (weights.to(device) for weights in grid.to_coarse)
    coarse = torch.zeros(grid.shape[::-1], device=device)
    for slab in _slabs(grid, box):
        # Read as scans lie in memory, from k to i: then every product is of matrices in one piece.
        block = torch.from_numpy(np.ascontiguousarray(read((*box[:2], slab)).T)).to(device)
        block = along_j[:, box[1]] @ (block @ along_i[:, box[0]].T)
        coarse += torch.einsum("ck,kba->cba", along_k[:, slab], block)
    return coarse.permute(2, 1, 0).contiguous()


def arg_max_on_scan(
    probability: Float[Tensor, "class a b c"], grid: CoarseGrid
) -> UInt[np.ndarray, "i j k"]:
    """Return the most probable class of every voxel of the scan, uint8 (uint16 beyond 255).

    The probabilities are interpolated in slabs along k, one class after the other with a running
    maximum: memory holds one slab of two classes, never all of them.
    """
    classes = probability.shape[0]
    along_i, along_j, along_k = (weights.to(probability.device) for weights in grid.to_scan)
    labels = np.zeros(grid.scan_shape, np.uint8 if classes <= 256 else np.uint16, order="F")
    for slab in _slabs(grid):
        thin = probability.float() @ along_k[slab].T
        largest = _enlarge(thin[0], along_i, along_j)
        winner = torch.zeros(largest.shape, dtype=torch.int16, device=largest.device)
        for label in range(1, classes):
            # Interpolation makes no new maximum, and below 1 / classes nothing can win.
            may_win = (thin[label] >= 1 / classes).any(dim=2)
            i, j = (_reached(w, may_win.any(dim=n)) for w, n in ((along_i, 1), (along_j, 0)))
            value = _enlarge(thin[label], along_i[i], along_j[j])
            winner[i, j][value > largest[i, j]] = label
            torch.maximum(value, largest[i, j], out=largest[i, j])
        labels[:, :, slab] = winner.cpu().numpy()
    return labels


def slices_on_scan(
    probability: Float[Tensor, "class a b c"], grid: CoarseGrid
) -> Iterator[Float[Tensor, "class i j"]]:
    """Yield the interpolated probabilities of every axial slice of the scan, by rising k."""
    along_i, along_j, along_k = (weights.to(probability.device) for weights in grid.to_scan)
    for weights in along_k:
        yield torch.einsum("ia,cab,jb->cij", along_i, probability.float() @ weights, along_j)


def _reached(weights: Float[Tensor, "out in"], which: Bool[Tensor, " in"]) -> slice:
    """Return from which to which output some of the inputs count; an empty slice if none does."""
    reached = (weights[:, which] != 0).any(dim=1).nonzero().flatten()
    return slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 0)


def _enlarge(
    thin: Float[Tensor, "a b k"], along_i: Float[Tensor, "i a"], along_j: Float[Tensor, "j b"]
) -> Float[Tensor, "i j k"]:
    return torch.einsum("jb,ibk->ijk", along_j, torch.einsum("ia,abk->ibk", along_i, thin))


def _slabs(grid: CoarseGrid, box: Part | None = None) -> Iterator[slice]:
    """Yield parts of a box along k, or of the whole scan, each of about as many voxels."""
    i, j, k = box or (slice(0, n) for n in grid.scan_shape)
    thickness = max(1, _SLAB_VOXELS // ((i.stop - i.start) * (j.stop - j.start)))
    for start in range(k.start, k.stop, thickness):
        yield slice(start, min(start + thickness, k.stop))
